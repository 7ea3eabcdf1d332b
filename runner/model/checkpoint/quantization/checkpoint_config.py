"""The `quantization_config` of a whole checkpoint: what is packed, and everything else that readers must leave alone.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from runner.contracts.facts import TensorHeader
from runner.contracts.mixtures import Mixture
from runner.contracts.model_description import Linears
from runner.model.checkpoint import formats
from runner.model.checkpoint.formats import bitsandbytes
from runner.model.checkpoint.quantization import compressed_tensors_config
from runner.model.checkpoint.quantization.format import Refusal, Stored
from runner.model.checkpoint.quantization.module_patterns import unpacked_modules
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.stored_types import NAMES


def write(
    stored: Mapping[str, Stored],
    tensors: Mapping[str, TensorHeader],
    linears: Linears | None,
    *,
    act_order: bool = False,
) -> dict[str, Any]:
    """The configuration of a checkpoint of which the modules in `stored` are packed.

    `tensors` are those of the dense checkpoint. Readers take every linear module of the model for packed unless the
    configuration names it, also those that no tensor is stored for (tied heads): `linears` has them.
    """
    known = linears or Linears()
    untouched = sorted({*unpacked_modules(tensors, stored), *known.unpacked(stored), *_dense_mixtures(stored, known)})
    config = _config(stored, untouched, act_order)
    if bitsandbytes.COMPUTE in config:
        types = _types(stored, tensors)
        return {**config, bitsandbytes.COMPUTE: NAMES[types[0]]} if types else config
    unpacks = known.needed or packs_experts(stored, known) or converted(stored, tensors)
    if config["quant_method"] == compressed_tensors_config.METHOD and unpacks:
        return {**config, "dequantize": True}
    return config


def _dense_mixtures(stored: Mapping[str, Stored], linears: Linears) -> list[str]:
    """The modules of experts that stay dense, which readers of `fp8` take for modules of their own."""
    if not any(own.format == formats.FP8 for own in stored.values()):
        return []
    return [each.name for each in linears.mixtures if stored.keys().isdisjoint(_sites(each))]


def _config(stored: Mapping[str, Stored], untouched: Iterable[str], act_order: bool) -> dict[str, Any]:
    names = {own.format for own in stored.values()}
    if len(names) > 1:
        return compressed_tensors_config.write_mixed(stored, untouched, act_order=act_order)
    schemes = {module: own.scheme for module, own in stored.items()}
    return formats.find(*names).config(schemes, untouched, act_order=act_order)


def _types(stored: Iterable[str], tensors: Mapping[str, TensorHeader]) -> list[str]:
    """The types of the dense weights of some modules, as safetensors names them."""
    names = (f"{module}.weight" for module in stored)
    return sorted({tensors[name].dtype for name in names if name in tensors and tensors[name].dtype in NAMES})


def converted(stored: Mapping[str, Stored], tensors: Mapping[str, TensorHeader]) -> bool:
    """Whether weights are unpacked to another type than the model's: transformers must convert them on loading."""
    return any(
        own.format in compressed_tensors_config.UNPACKED_TO_BF16 and tensors[f"{module}.weight"].dtype != "BF16"
        for module, own in stored.items()
        if f"{module}.weight" in tensors
    )


def files(stored: Mapping[str, Stored]) -> tuple[str, ...]:
    """The further JSON files that repeat the configuration."""
    return tuple(sorted({file for own in stored.values() for file in formats.find(own.format).FILES}))


def refuse_together(stored: Mapping[str, Stored]) -> Refusal | None:
    """Why transformers cannot load these modules in one checkpoint; None: it can."""
    by_format: dict[str, dict[str, Scheme]] = {}
    for module, own in sorted(stored.items(), key=lambda each: each[1].format):
        by_format.setdefault(own.format, {})[module] = own.scheme
    for name, schemes in by_format.items():
        refusal = formats.find(name).refuse_together(schemes.values())
        if refusal is not None:
            return refusal
    methods = {formats.find(name).config(schemes)["quant_method"] for name, schemes in by_format.items()}
    if len(by_format) > 1 and methods != {compressed_tensors_config.METHOD}:
        listed = " and ".join(f"`{name}`" for name in by_format)
        return Refusal(f"one checkpoint cannot hold {listed}", "use formats of compressed-tensors alone")
    return None


def refuse(
    stored: Mapping[str, Stored], linears: Linears, tensors: Mapping[str, TensorHeader] | None = None
) -> Refusal | None:
    """Why transformers cannot load a model of these linear modules packed; None: it can, or unpacks it first."""
    late, experts = converted(stored, tensors or {}), packs_experts(stored, linears)
    types = _types(stored, tensors or {})
    if len(types) > 1 and any(own.format == bitsandbytes.NAME for own in stored.values()):
        problem = f"its weights are stored as {' and '.join(types)}, and `{bitsandbytes.NAME}` unpacks to one type"
        return Refusal(problem, "use another format, or add the modules of one type to `ignore`")
    if not stored:
        return None
    left = _refuse_joined(stored, linears)
    if left is not None or not (linears.needed or late or experts):
        return left
    problem = "transformers can only load packed experts of a mixture that it unpacks" if experts else (
        "transformers' code of this model reads the weights of linear modules while it loads them; it can only load "
        "packed ones that it unpacks"
        if linears.needed
        else "the model is not stored in bfloat16, to which compressed-tensors unpacks small floats; transformers can "
        "only load packed ones that it unpacks"
    )  # fmt: skip
    config = _config(stored, (), False)
    if config["quant_method"] == formats.FP8 and not linears.needed:
        return _refuse_single(stored, linears)
    if config["quant_method"] != compressed_tensors_config.METHOD:
        return Refusal(problem + ", and those of this format it does not unpack", "use `format: pack-quantized`")
    if not compressed_tensors_config.can_dequantize_on_load(config):
        return Refusal(problem + ", which it does for one scheme alone", "drop `overrides`")
    if experts and not (linears.needed or late):
        return _refuse_experts(problem, next(iter(stored.values())))
    if any(own.scheme.activations is not None for own in stored.values()):
        return Refusal(problem + ", and then it does not round their inputs",
                       "choose a scheme of weights alone, such as `w4a16`")  # fmt: skip
    return _refuse_experts(problem, next(iter(stored.values()))) if experts else None


def _refuse_joined(stored: Mapping[str, Stored], linears: Linears) -> Refusal | None:
    """Why transformers cannot join dense experts beside packed modules of compressed-tensors; None: it can.

    It makes one tensor of the experts of a layer and, unless weights are 8-bit floats, takes each for packed (5.23).
    """
    joined = (name for each in linears.mixtures if not each.tensors() for name in _sites(each))
    dense = next((name for name in joined if name not in stored), None)
    if dense is None or all(own.scheme.weights.element == "float8_e4m3" for own in stored.values()):
        return None
    if _config(stored, (), False)["quant_method"] != compressed_tensors_config.METHOD:
        return None
    problem = (
        f"transformers joins the experts of a layer on loading, and takes all of them for packed: `{dense}` is not"
    )
    return Refusal(problem, "quantize all experts too, none, or use a scheme of 8-bit floats, such as `scheme: fp8`")


def _refuse_experts(problem: str, own: Stored) -> Refusal | None:
    """Why transformers cannot unpack experts of compressed-tensors as it loads them; None: it can."""
    if not own.scheme.symmetric:
        return Refusal(problem + ", and of experts it does not read the zero points", "use `symmetric: true`")
    if own.format == formats.FLOAT_QUANTIZED and own.scheme.strategy == "block":
        return Refusal(problem + ", and of experts it does not read the scales of blocks",
                       f"use `format: {formats.FP8}`")  # fmt: skip
    if own.format not in (formats.PACK_QUANTIZED, formats.FLOAT_QUANTIZED):
        remedy = f"use `format: {formats.PACK_QUANTIZED}`, or `scheme: fp8`"
        return Refusal(problem + f", and experts of `{own.format}` it does not unpack", remedy)
    if own.scheme.calibrated:
        return Refusal("servers take one calibrated scale for all experts of a layer, whose inputs differ",
                       "leave out `activations: static`")  # fmt: skip
    return None


def _refuse_single(stored: Collection[str], linears: Linears) -> Refusal | None:
    """Why readers that have one module for all experts of a layer cannot load them; None: they can."""
    for mixture in linears.mixtures:
        packed = [name for name in _sites(mixture) if name in stored]
        if packed and len(packed) < len(mixture.matrices) * mixture.experts:
            left = next(name for name in _sites(mixture) if name not in stored)
            problem = f"readers of `{formats.FP8}` have one module for all experts of a layer, and `{left}` stays dense"
            return Refusal(problem, "leave out all of them, or none")
    return None


def packs_experts(stored: Collection[str], linears: Linears) -> bool:
    """Whether experts of a mixture are among the packed modules."""
    return any(name in stored for each in linears.mixtures for name in _sites(each))


def _sites(mixture: Mixture) -> Iterator[str]:
    return (name for expert in range(mixture.experts) for name in mixture.sites(expert))

"""The `quantization_config` of compressed-tensors, which several formats share: writing and reading its groups.

Imports no torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from runner.model.checkpoint.quantization.format import Config, Matrix, Reader, Refusal, Rules, Stored
from runner.model.checkpoint.quantization.module_patterns import patterns
from runner.model.checkpoint.quantization.scheme import AS_WEIGHTS, Layout, Numbers, Scheme

METHOD = "compressed-tensors"
MIXED = "mixed-precision"  # where groups of modules are stored in different formats
# Unpacked to bf16 by compressed-tensors 0.20, whatever the type of the model is.
UNPACKED_TO_BF16 = frozenset({"nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"})
TRANSFORMERS = Reader("transformers", METHOD, "transformers 5.23, compressed-tensors 0.20")
_SCALES = {"float8_e4m3": "torch.float8_e4m3fn", "float8_e8m0": "torch.uint8"}


def refuse_conv1d(matrix: Matrix) -> Refusal | None:
    """compressed-tensors knows no Conv1D modules: transformers would load them with random weights."""
    if not matrix.transposed:
        return None
    return Refusal("is a Conv1D module, which compressed-tensors cannot load", "use a kind that keeps weights dense")


def write(
    format: str,
    schemes: Mapping[str, Scheme],
    untouched: Iterable[str] = (),
    *,
    act_order: bool = False,
    dequantize: bool = False,
) -> dict[str, Any]:
    """The configuration of modules that are all stored in one format. Deterministic for equal arguments.

    `untouched` names every other linear module of the model ("lm_head" is added unless it is packed). `dequantize`
    makes transformers unpack the weights while it loads them.
    """
    stored = {module: Stored(format, scheme) for module, scheme in schemes.items()}
    config = write_mixed(stored, untouched, act_order=act_order)
    return {**config, "dequantize": True} if dequantize else config


def write_mixed(
    stored: Mapping[str, Stored], untouched: Iterable[str] = (), *, act_order: bool = False
) -> dict[str, Any]:
    """The same for modules in one or several of the formats of compressed-tensors."""
    rest = sorted({*untouched, "lm_head"} - set(stored))
    groups = _groups(stored)
    written = {}
    for index, (own, modules) in enumerate(groups):
        weights = _written(own.scheme.weights)
        if act_order:  # static groups: what readers call "weight"; it does not change the layout
            weights["actorder"] = "weight"
        # The class name would also catch the fused modules of vLLM whose parts belong to another group.
        targets = ["Linear"] if len(groups) == 1 else [f"re:{p}" for p in patterns(modules, stored, rest)]
        inputs = own.scheme.activations
        written[f"group_{index}"] = {
            "targets": targets, "weights": weights,
            "input_activations": None if inputs is None else _written(inputs, dynamic=own.scheme.dynamic, inputs=True),
            "output_activations": None, "format": own.format,
        }  # fmt: skip
    names = {own.format for own in stored.values()}
    return {
        "quant_method": METHOD,
        "format": names.pop() if len(names) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": written,
        "ignore": rest,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _groups(stored: Mapping[str, Stored]) -> list[tuple[Stored, list[str]]]:
    """(how, its modules): the most common way first, ties in a stable order. ValueError where there is none."""
    if not stored:
        raise ValueError("no module is quantized")
    ranked = sorted(
        Counter(stored.values()).items(), key=lambda pair: (-pair[1], pair[0].scheme.order(), pair[0].format)
    )
    return [(own, [module for module in stored if stored[module] == own]) for own, _ in ranked]


def _written(numbers: Numbers, dynamic: bool = False, inputs: bool = False) -> dict[str, Any]:
    """The `weights` or `input_activations` of a group."""
    local = dynamic and numbers.two_level
    written: dict[str, Any] = {
        "num_bits": numbers.bits,
        "type": "int" if numbers.is_integer else "float",
        "symmetric": numbers.symmetric,
        "strategy": "tensor_group" if numbers.two_level else numbers.strategy,
        "group_size": numbers.layout if numbers.strategy == "group" else None,
        "dynamic": "local" if local else dynamic,
    }
    if isinstance(numbers.layout, tuple):
        written["block_structure"] = list(numbers.layout)
    if numbers.scale in _SCALES:
        written["scale_dtype"] = _SCALES[numbers.scale]
    return {**written, "observer": "static_minmax"} if inputs and (local or not dynamic) else written


def parse(config: Config, format: str, only: Numbers | None = None) -> Rules | None:
    """What the groups of a configuration that name `format` say; None where none does.

    `only` are the numbers of weights that the format holds, where it holds no others.
    """
    if config.get("quant_method") != METHOD:
        return None
    exact: list[tuple[str, Scheme | None]] = []
    matched: list[tuple[str, Scheme | None]] = []
    default, found = None, False
    for group in config["config_groups"].values():
        if str(group.get("format") or config.get("format")) != format:
            continue
        found = True
        scheme = _scheme(group)
        if only is not None and scheme.weights != only:
            raise ValueError(
                f"{scheme.weights.describe()} in the format `{format}` of {METHOD} cannot be read; a dense checkpoint "
                "is needed"
            )
        for target in sorted(group["targets"]):
            if target.startswith("re:"):
                matched.append((target[3:], scheme))
            elif target == "Linear":
                default = default or scheme
            else:
                exact.append((f"^{re.escape(target)}$", scheme))
    return Rules(tuple(exact), tuple(matched), default) if found else None


def _scheme(group: Mapping[str, Any]) -> Scheme:
    """The scheme of a group. ValueError where numbers are stored in a way that is not known here."""
    inputs: Mapping[str, Any] | None = group.get("input_activations")
    if group.get("output_activations"):
        raise ValueError("rounded outputs of compressed-tensors cannot be computed; a dense checkpoint is needed")
    weights = _numbers(group.get("weights") or {}, "weights")
    if inputs is None:
        return Scheme(weights)
    dynamic = inputs.get("dynamic", False)
    activations = _numbers(inputs, "inputs")
    known = dynamic == "local" if activations.two_level else dynamic is True or activations.strategy == "tensor"
    if activations.strategy in ("block", "channel") or not activations.symmetric or not known:
        how = "" if dynamic else "with calibrated scales "
        raise ValueError(
            f"inputs that compressed-tensors rounds {how}to {activations.describe()} cannot be computed; a dense "
            "checkpoint is needed"
        )
    return Scheme(weights, activations, dynamic=bool(dynamic))


_FLOATS = {8: "float8_e4m3", 4: "float4_e2m1"}


def _numbers(written: Mapping[str, Any], what: str) -> Numbers:
    bits = int(written.get("num_bits", 8))
    symmetric = bool(written.get("symmetric", True))
    kind = written.get("type", "int")
    layout = _layout(written)
    if kind == "int":
        if isinstance(layout, tuple):
            raise ValueError("blocks of integers of compressed-tensors cannot be read; a dense checkpoint is needed")
        return Numbers(f"int{bits}", layout, symmetric=symmetric)
    scale = _scale(written)
    if bits not in _FLOATS or not symmetric or scale is None or (bits == 4 and scale == AS_WEIGHTS):
        raise ValueError(f"{bits}-bit float {what} of compressed-tensors cannot be read; a dense checkpoint is needed")
    return Numbers(_FLOATS[bits], layout, scale)


def _scale(written: Mapping[str, Any]) -> str | None:
    """The type in which floats' scales are stored; None for one that is not known here.

    Configurations of older versions leave that of NVFP4 out.
    """
    two_level = written.get("strategy") == "tensor_group"
    named = written.get("scale_dtype") or (_SCALES["float8_e4m3"] if two_level else None)
    if named is None:
        return AS_WEIGHTS
    found = next((scale for scale, each in _SCALES.items() if each == named), None)
    return found if two_level == (found == "float8_e4m3") else None


def _layout(numbers: Mapping[str, Any]) -> Layout:
    size = numbers.get("group_size")
    strategy = numbers.get("strategy")
    if strategy is None:  # as compressed-tensors infers it
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy == "block":
        rows, columns = numbers["block_structure"]
        return int(rows), int(columns)
    return int(size or 0) if strategy in ("group", "tensor_group") else str(strategy)


def can_dequantize_on_load(config: Config) -> bool:
    """Whether transformers can be asked to unpack all weights while it loads them: 5.23 reads several schemes as the

    first of them there.
    """
    return config.get("quant_method") == METHOD and len(config["config_groups"]) == 1


def unpacks_late(config: Config) -> bool:
    """Whether transformers unpacks the weights in the first forward only."""
    return bool(config.get("quant_method") == METHOD and config.get("config_groups") and not config.get("dequantize"))

"""The `quantization_config` of config.json: writing it for packed modules, and reading one back. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.contracts.facts import TensorHeader
from runner.model.checkpoint.formats.rules import (
    GPTQ,
    PACK_QUANTIZED,
    Scheme,
    gptq_group_size,
    packs_zero_points,
    scheme_from_config,
)

INT_QUANTIZED = "int-quantized"
COMPRESSED_TENSORS = "compressed-tensors"
_INDEXED = re.compile(r"^(.*?\.)?(\d+)\.(.+)$")


def quantization_config(
    format: str,
    schemes: Mapping[str, Scheme],
    untouched: Iterable[str] = (),
    *,
    act_order: bool = False,
    producer: str = "runner",
) -> dict[str, Any]:
    """What config.json says of the packed modules, so that readers find them and leave the others alone.

    `schemes` names every packed module; `untouched` every other linear module of the model ("lm_head" is added unless
    it is packed). The same mapping is written as quantize_config.json for `gptq`. Deterministic for equal arguments.
    """
    if not schemes:
        raise ValueError("no module is quantized")
    rest = sorted({*untouched, "lm_head"} - set(schemes))
    # The most common scheme is the default; ties go to the smallest, so that the choice is stable.
    ranked = sorted(Counter(schemes.values()).items(), key=lambda pair: (-pair[1], _order(pair[0])))
    groups = [(scheme, [m for m in schemes if schemes[m] == scheme]) for scheme, _ in ranked]
    if format == GPTQ:
        return _gptq_config(groups, schemes, rest, producer)
    return _compressed_tensors_config(groups, schemes, rest, act_order)


def unpacked_modules(tensors: Mapping[str, TensorHeader], schemes: Mapping[str, Scheme]) -> list[str]:
    """Modules with a weight matrix that are not packed, by the headers of the dense checkpoint: `untouched`, complete.

    Embeddings are among them: naming them costs nothing, missing a linear module (OPT's project_in) would make readers
    expect packed tensors there.
    """
    matrices = (name for name, tensor in tensors.items() if name.endswith(".weight") and len(tensor.shape) == 2)
    return sorted({name.removesuffix(".weight") for name in matrices} - set(schemes))


def _order(scheme: Scheme) -> tuple[int, str, bool]:
    return scheme.bits, str(scheme.group_size), scheme.symmetric


def _compressed_tensors_config(
    groups: list[tuple[Scheme, list[str]]], schemes: Mapping[str, Scheme], rest: list[str], act_order: bool
) -> dict[str, Any]:
    written = {}
    for index, (scheme, modules) in enumerate(groups):
        weights: dict[str, Any] = {
            "num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, "strategy": scheme.strategy,
            "group_size": scheme.group_size if scheme.strategy == "group" else None, "dynamic": False,
        }  # fmt: skip
        if act_order:  # static groups: what readers call "weight"; it does not change the layout
            weights["actorder"] = "weight"
        # The class name would also catch the fused modules of vLLM whose parts belong to another group.
        targets = ["Linear"] if len(groups) == 1 else [f"re:{p}" for p in _patterns(modules, schemes, rest)]
        written[f"group_{index}"] = {
            "targets": targets, "weights": weights, "input_activations": None, "output_activations": None,
            "format": PACK_QUANTIZED,
        }  # fmt: skip
    config: dict[str, Any] = {
        "quant_method": COMPRESSED_TENSORS,
        "format": PACK_QUANTIZED,
        "quantization_status": "compressed",
        "config_groups": written,
        "ignore": rest,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    if any(packs_zero_points(scheme) for scheme, _ in groups):
        # Loading compressed, transformers expects zero points that are not packed (compressed-tensors 0.20 leaves
        # them so when it compresses the empty model) and stops; loading dequantized, it takes them as they are.
        config["dequantize"] = True
    return config


def _gptq_config(
    groups: list[tuple[Scheme, list[str]]], schemes: Mapping[str, Scheme], rest: list[str], producer: str
) -> dict[str, Any]:
    default = groups[0][0]
    config: dict[str, Any] = {
        "quant_method": GPTQ,
        "bits": default.bits,
        "group_size": gptq_group_size(default),
        "sym": default.symmetric,
        "desc_act": False,
        "lm_head": "lm_head" in schemes,
        "checkpoint_format": "gptq" if gptq_version(schemes.values()) == 1 else "gptq_v2",
        "pack_dtype": "int32",
        "meta": {"quantizer": [producer]},
    }
    blocks = {_block(module)[0] for module in schemes}
    inside = [module for module in rest if _block(module)[0] in blocks]
    dynamic: dict[str, Any] = {f"-:{pattern}": {} for pattern in _patterns(inside, {}, [*schemes, *rest])}
    for scheme, modules in groups[1:]:
        override = {"bits": scheme.bits, "group_size": gptq_group_size(scheme), "sym": scheme.symmetric}
        dynamic |= {f"+:{pattern}": override for pattern in _patterns(modules, schemes, rest)}
    if dynamic:
        config["dynamic"] = dynamic
    if inside:  # the reader in transformers knows no `dynamic`: it matches the ends of names against this list
        suffixes = {_block(module)[1] for module in schemes}
        mixed = suffixes & {_block(module)[1] for module in inside}
        config["modules_in_block_to_quantize"] = [sorted(schemes) if mixed else sorted(suffixes)]
    return config


def gptq_version(schemes: Iterable[Scheme]) -> int:
    """1 ("gptq") where every weight is symmetric, else 2 ("gptq_v2"): one file has one version."""
    return 1 if all(scheme.symmetric for scheme in schemes) else 2


def _block(module: str) -> tuple[str, str]:
    """("model.layers.", "mlp.up_proj") of "model.layers.3.mlp.up_proj"; ("", name) outside numbered blocks."""
    found = _INDEXED.match(module)
    return (found.group(1) or "", found.group(3)) if found else ("", module)


def _patterns(modules: Iterable[str], schemes: Mapping[str, Scheme], rest: Iterable[str]) -> list[str]:
    """Regular expressions that match exactly `modules` among all modules of `schemes` and `rest`.

    One for all layers where every module of that name is meant, else one per module.
    """
    wanted = set(modules)
    others = {_block(module) for module in {*schemes, *rest} - wanted}
    found = set()
    for module in wanted:
        prefix, suffix = _block(module)
        if not prefix or (prefix, suffix) in others:
            found.add(f"^{re.escape(module)}$")
        else:
            found.add(rf"^{re.escape(prefix)}\d+\.{re.escape(suffix)}$")
    return sorted(found)


@dataclass(frozen=True)
class Packing:
    """A `quantization_config` read back: how each packed module of the checkpoint is stored.

    `format` is "pack-quantized", "int-quantized" or "gptq"; `version` 1 or 2 for "gptq".
    """

    format: str
    rules: tuple[tuple[str, Scheme | None], ...] = field(default_factory=tuple)  # first match wins; None: not packed
    default: Scheme | None = None
    version: int = 1

    def scheme(self, module: str) -> Scheme | None:
        """The scheme of a module, by its checkpoint name; meaningful for modules whose tensors are packed."""
        for pattern, scheme in self.rules:
            if re.match(pattern, module):
                return scheme
        return self.default


def parse(config: Mapping[str, Any] | None) -> Packing | None:
    """The `quantization_config` of a checkpoint; None for a dense one. ValueError names what cannot be read."""
    if not config:
        return None
    method = config.get("quant_method")
    try:
        if method == COMPRESSED_TENSORS:
            return _parse_compressed_tensors(config)
        if method == GPTQ:
            return _parse_gptq(config)
    except KeyError as error:
        raise ValueError(f"its quantization_config of `{method}` lacks `{error.args[0]}`") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"its quantization_config of `{method}` is not understood: {error}") from error
    raise ValueError(f"checkpoints quantized with `{method}` cannot be read; a dense checkpoint is needed")


def _parse_compressed_tensors(config: Mapping[str, Any]) -> Packing:
    formats = {str(group.get("format") or config.get("format")) for group in config["config_groups"].values()}
    format = formats.pop() if len(formats) == 1 else ", ".join(sorted(formats))
    if format not in (PACK_QUANTIZED, INT_QUANTIZED):
        raise ValueError(f"the compressed-tensors format `{format}` cannot be read; a dense checkpoint is needed")
    exact: list[tuple[str, Scheme | None]] = []
    matched: list[tuple[str, Scheme | None]] = []
    default = None
    for group in config["config_groups"].values():
        weights = group.get("weights") or {}
        if weights.get("type", "int") != "int":
            raise ValueError("float weights of compressed-tensors cannot be read; a dense checkpoint is needed")
        scheme = scheme_from_config(weights)
        for target in sorted(group["targets"]):
            if target.startswith("re:"):
                matched.append((target[3:], scheme))
            elif target == "Linear":
                default = default or scheme
            else:
                exact.append((f"^{re.escape(target)}$", scheme))
    return Packing(format, (*exact, *matched), default)


def _parse_gptq(config: Mapping[str, Any]) -> Packing:
    default = _gptq_scheme(config, config)
    rules: list[tuple[str, Scheme | None]] = []
    for pattern, override in (config.get("dynamic") or {}).items():
        skipped = pattern.startswith("-:")
        rules.append(
            (pattern.removeprefix("-:").removeprefix("+:"), None if skipped else _gptq_scheme(override, config))
        )
    version = 2 if config.get("checkpoint_format", config.get("format")) == "gptq_v2" else 1
    return Packing(GPTQ, tuple(rules), default, version)


def _gptq_scheme(values: Mapping[str, Any], base: Mapping[str, Any]) -> Scheme:
    size = int(values.get("group_size", base["group_size"]))
    return Scheme(
        bits=int(values.get("bits", base["bits"])),
        group_size="channel" if size == -1 else size,
        symmetric=bool(values.get("sym", base.get("sym", True))),
    )

"""The `quantization_config` of compressed-tensors, which several formats share: writing and reading its groups.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from runner.model.checkpoint.quantization.format import Config, Rules
from runner.model.checkpoint.quantization.module_patterns import by_scheme, patterns
from runner.model.checkpoint.quantization.scheme import Layout, Numbers, Scheme

METHOD = "compressed-tensors"


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
    rest = sorted({*untouched, "lm_head"} - set(schemes))
    groups = by_scheme(schemes)
    written = {}
    for index, (scheme, modules) in enumerate(groups):
        weights = _written(scheme.weights)
        if act_order:  # static groups: what readers call "weight"; it does not change the layout
            weights["actorder"] = "weight"
        # The class name would also catch the fused modules of vLLM whose parts belong to another group.
        targets = ["Linear"] if len(groups) == 1 else [f"re:{p}" for p in patterns(modules, schemes, rest)]
        inputs = scheme.activations
        written[f"group_{index}"] = {
            "targets": targets, "weights": weights,
            "input_activations": None if inputs is None else _written(inputs, dynamic=scheme.dynamic),
            "output_activations": None, "format": format,
        }  # fmt: skip
    config: dict[str, Any] = {
        "quant_method": METHOD,
        "format": format,
        "quantization_status": "compressed",
        "config_groups": written,
        "ignore": rest,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    return {**config, "dequantize": True} if dequantize else config


def _written(numbers: Numbers, dynamic: bool = False) -> dict[str, Any]:
    """The `weights` or `input_activations` of a group."""
    written = {
        "num_bits": numbers.bits,
        "type": "int" if numbers.is_integer else "float",
        "symmetric": numbers.symmetric,
        "strategy": numbers.strategy,
        "group_size": numbers.layout if numbers.strategy == "group" else None,
        "dynamic": dynamic,
    }
    return {**written, "block_structure": list(numbers.layout)} if isinstance(numbers.layout, tuple) else written


def parse(config: Config, format: str) -> Rules | None:
    """What the groups of a configuration that name `format` say; None where none does."""
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
    if inputs.get("dynamic") is not True:
        raise ValueError(
            "inputs that compressed-tensors rounds with calibrated scales cannot be computed; a dense checkpoint is "
            "needed"
        )
    activations = _numbers(inputs, "inputs")
    if activations.strategy == "block" or not activations.symmetric:
        raise ValueError(
            f"inputs that compressed-tensors rounds to {activations.describe()} cannot be computed; a dense "
            "checkpoint is needed"
        )
    return Scheme(weights, activations)


_FLOATS = {8: "float8_e4m3"}


def _numbers(written: Mapping[str, Any], what: str) -> Numbers:
    bits = int(written.get("num_bits", 8))
    symmetric = bool(written.get("symmetric", True))
    kind = written.get("type", "int")
    if kind == "float" and (bits not in _FLOATS or not symmetric or written.get("scale_dtype")):
        raise ValueError(f"{bits}-bit float {what} of compressed-tensors cannot be read; a dense checkpoint is needed")
    layout = _layout(written)
    if kind == "int" and isinstance(layout, tuple):
        raise ValueError("blocks of integers of compressed-tensors cannot be read; a dense checkpoint is needed")
    return Numbers(_FLOATS[bits] if kind == "float" else f"int{bits}", layout, symmetric=symmetric)


def _layout(numbers: Mapping[str, Any]) -> Layout:
    size = numbers.get("group_size")
    strategy = numbers.get("strategy")
    if strategy is None:  # as compressed-tensors infers it
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy == "block":
        rows, columns = numbers["block_structure"]
        return int(rows), int(columns)
    return int(size or 0) if strategy == "group" else str(strategy)


def can_dequantize_on_load(config: Config) -> bool:
    """Whether transformers can be asked to unpack all weights while it loads them: 5.23 reads several schemes as the

    first of them there.
    """
    return config.get("quant_method") == METHOD and len(config["config_groups"]) == 1


def unpacks_late(config: Config) -> bool:
    """Whether transformers unpacks the weights in the first forward only."""
    return bool(config.get("quant_method") == METHOD and config.get("config_groups") and not config.get("dequantize"))

"""On-disk formats of quantized weights: each module of this package is one and meets `quantization.format.Format`.

They are found by looking into the package, so that adding one is adding a module. Imports no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast

from runner.contracts.facts import TensorHeader
from runner.model.checkpoint.quantization import cache_scheme
from runner.model.checkpoint.quantization.format import Format, Matrix, Packing, Reader, Refusal, Rules, Stored
from runner.model.checkpoint.quantization.scheme import Scheme

PACK_QUANTIZED = "pack-quantized"  # where nothing else is asked for
FLOAT_QUANTIZED = "float-quantized"
FP8 = "fp8"  # that of DeepSeek's and Qwen's 8-bit floats


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format, by the name of its module."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(cast(Format, importlib.import_module(f"{__name__}.{name}")) for name in names)


def find(name: str) -> Format:
    """The format of that name. ValueError for an unknown one."""
    for format in all_formats():
        if name == format.NAME:
            return format
    raise ValueError(f"`{name}` is not one of the formats {', '.join(f'`{f.NAME}`' for f in all_formats())}")


def of_module(tensors: Mapping[str, TensorHeader], module: str) -> Format | None:
    """The format in which the tensors of a module are stored; None for a plain weight, or none."""
    return next((format for format in all_formats() if format.holds(tensors, module)), None)


def weight_name(tensors: Mapping[str, TensorHeader], module: str) -> str:
    """The tensor that holds the weight of a module, plain or packed."""
    format = of_module(tensors, module)
    return f"{module}.{'weight' if format is None else format.WEIGHT}"


def is_weight(name: str) -> bool:
    """Whether a tensor's name is that of a weight, plain or packed."""
    return name.rpartition(".")[2] in {"weight", *(format.WEIGHT for format in all_formats())}


def parse(config: Mapping[str, Any] | None) -> Packing | None:
    """The `quantization_config` of a checkpoint; None for a dense one. ValueError names what cannot be read."""
    if not config:
        return None
    method = config.get("quant_method")
    found: dict[str, Rules] = {}
    cache = cache_scheme.parse(config)
    try:
        for format in all_formats():
            rules = format.parse(config)
            if rules is not None:
                found[format.NAME] = rules
        unknown = _formats_of(config) - set(found)
    except KeyError as error:
        raise ValueError(f"its quantization_config of `{method}` lacks `{error.args[0]}`") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"its quantization_config of `{method}` is not understood: {error}") from error
    if not config.get("config_groups") and not found and cache is None:
        raise ValueError(f"checkpoints quantized with `{method}` cannot be read; a dense checkpoint is needed")
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"the {method} format `{names}` cannot be read; a dense checkpoint is needed")
    rules = Rules(
        exact=tuple(rule for each in found.values() for rule in each.exact),
        matched=tuple(rule for each in found.values() for rule in each.matched),
        default=next((each.default for each in found.values() if each.default is not None), None),
    )
    return Packing(tuple(found), rules, config, cache)


def _formats_of(config: Mapping[str, Any]) -> set[str]:
    """The formats that the groups of a compressed-tensors configuration name."""
    groups: Mapping[str, Mapping[str, Any]] = config.get("config_groups") or {}
    return {str(group.get("format") or config.get("format")) for group in groups.values()}


def readers(stored: Iterable[Stored], transposed: bool = False) -> tuple[Reader, ...]:
    """Who loads a checkpoint whose modules are stored so; a reader of several formats has the limits of each."""
    by_format: dict[str, list[Scheme]] = {}
    for own in stored:
        by_format.setdefault(own.format, []).append(own.scheme)
    found: dict[str, Reader] = {}
    for name, schemes in sorted(by_format.items()):
        for reader in find(name).readers(schemes, transposed):
            other = found.get(reader.name)
            found[reader.name] = reader if other is None or reader.limit else other
    return tuple(found.values())


def refuse(name: str, scheme: Scheme, matrix: Matrix) -> Refusal | None:
    """Why a weight cannot be stored with a scheme in the format of that name, and which other format can hold it."""
    refusal = find(name).refuse(scheme, matrix)
    if refusal is None:
        return None
    others = [f"`format: {f.NAME}`" for f in all_formats() if name != f.NAME and f.refuse(scheme, matrix) is None]
    return Refusal(refusal.problem, f"{refusal.remedy}, or {' or '.join(others)}" if others else refusal.remedy)

"""Whether the weights of a checkpoint are stored in a way that can be read as what they mean. Imports no torch.

Integers and 8-bit floats mean nothing without their scales: a reader that took them for weights would measure and
compress another model, and say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.contracts.facts import TensorHeader
from runner.contracts.sites import Site
from runner.errors import Diagnostic
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization import cache_scheme

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_REMEDY = "start from the model as it was before it was quantized"


def refuse(
    config: Mapping[str, Any], tensors: Mapping[str, TensorHeader], sites: tuple[Site, ...], source: str
) -> Diagnostic | None:
    """Why the weights of a checkpoint cannot be read, or None."""
    quantization = config.get("quantization_config")
    try:
        packing = formats.parse(quantization)
    except ValueError as error:
        return Diagnostic("R409", f"`{source}`: {error}", _REMEDY)
    scaled = next((name for name in sorted(tensors) if name.rpartition(".")[2] in cache_scheme.SCALES), None)
    if (scaled is not None) != (packing is not None and packing.cache is not None):
        what = f"`{scaled}` of `{source}` scales its cache of keys and values, and nothing in config.json says how"
        lacks = f"config.json of `{source}` rounds its cache of keys and values, and no tensor has the scales"
        return Diagnostic("R409", what if scaled is not None else lacks, _REMEDY)
    for linear in sites:
        weight = tensors.get(f"{linear.name}.weight")
        if weight is None:
            if packing is not None and packing.scheme(linear.name) is not None:
                continue
            message = f"`{linear.name}` of `{source}` is packed, and nothing in config.json says how"
            return Diagnostic("R409", message, _REMEDY)
        if weight.dtype in _FLOATS:
            continue
        if packing is not None and formats.of_module(tensors, linear.name) is not None:
            continue
        message = f"`{weight.name}` of `{source}` is stored as {weight.dtype}, and nothing in config.json says how"
        return Diagnostic("R409", message, _REMEDY)
    return None

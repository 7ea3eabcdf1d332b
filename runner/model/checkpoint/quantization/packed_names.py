"""The tensors of a packed weight by their names, and its shape where one of them says so. Imports no torch.

Most formats put them beside the weight, `X.weight_packed`; bitsandbytes puts them below it, `X.weight.absmax`. Headers
alone do not say the shape of some: compressed-tensors stores int64 `weight_shape`, bitsandbytes JSON in `quant_state`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Container

_BELOW = ".weight."
_OF_BITSANDBYTES = ("absmax", "quant_map", "quant_state", "nested_absmax", "nested_quant_map")
_SHAPE = ".weight_shape"
_STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")


def split(name: str) -> tuple[str, str]:
    """The module of a tensor, and its name there: ("X", "weight_packed"), ("X", "weight.absmax")."""
    module, found, key = name.partition(_BELOW)
    if found and key.partition(".")[0] in _OF_BITSANDBYTES:
        return module, f"weight.{key}"
    module, _, key = name.rpartition(".")
    return module, key


def shape_holder(tensors: Container[str], module: str) -> str | None:
    """The name of the tensor that says the shape of a module's weight; None without one."""
    return next((module + end for end in (_SHAPE, *_STATES) if module + end in tensors), None)


def whose_shape(name: str) -> str | None:
    """The module of whose weight a tensor of this name says the shape; None for any other tensor."""
    return next((name.removesuffix(end) for end in (_SHAPE, *_STATES) if name.endswith(end)), None)


def read_shape(name: str, stored: bytes) -> tuple[int, ...]:
    """The shape that the bytes of such a tensor say; ValueError where they are damaged."""
    if name.endswith(_SHAPE):
        return struct.unpack(f"<{len(stored) // 8}q", stored[: len(stored) // 8 * 8])
    try:
        return tuple(int(size) for size in json.loads(stored)["shape"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"`{name}` is not understood: {error}") from error

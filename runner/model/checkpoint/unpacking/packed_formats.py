"""The formats of `runner.model.checkpoint.formats`, whoever wrote them: compressed-tensors, GPTQ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization import packed_names
from runner.model.checkpoint.unpacking.protocol import Config, Headers, Peek, Read, Unreadable, Weight

if TYPE_CHECKING:
    import torch

NAME = "packed weights"
PEEKS = True


def holds(config: Config) -> bool:
    try:
        return formats.parse(config) is not None
    except ValueError:
        return False


def weights(config: Config, tensors: Headers, peek: Peek) -> list[Weight]:
    packing = formats.parse(config)
    beside: dict[str, list[str]] = {}
    for name in tensors:
        module, key = packed_names.split(name)
        if key != "bias":
            beside.setdefault(module, []).append(name)
    found = []
    for module, names in beside.items():
        format = formats.of_module(tensors, module)
        if format is None:
            continue
        scheme = packing.scheme(module) if packing else None
        if scheme is None:
            raise Unreadable(f"stores `{module}` packed, and nothing in config.json says how")
        holder = packed_names.shape_holder(tensors, module)
        shape = packed_names.read_shape(holder, peek(holder)) if holder else format.shape(tensors, module, scheme)
        found.append(Weight(f"{module}.weight", shape, tuple(names)))
    return found


def unpack(weight: Weight, config: Config, tensors: Headers, read: Read) -> torch.Tensor:
    import torch

    module = weight.name.removesuffix(".weight")
    packing = formats.parse(config)
    scheme = packing.scheme(module) if packing else None
    format = formats.of_module(tensors, module)
    if packing is None or scheme is None or format is None:
        raise Unreadable(f"stores `{module}` packed, and nothing in config.json says how")
    return format.unpack(module, scheme, config, read).dequantize(torch.float32)

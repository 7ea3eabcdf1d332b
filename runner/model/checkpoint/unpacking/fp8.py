"""8-bit floats with scales as DeepSeek, Qwen and Mistral publish them (quant_method "fp8" of transformers).

NAME            float8_e4m3 [..., out, in]
NAME_scale_inv  float32 or bfloat16 [..., ⌈out / r⌉, ⌈in / c⌉] for blocks of r × c, or one for the entire tensor: it is
                multiplied with, whatever its name says. As uint8 or float8_e8m0 it is the exponent, biased by 127.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from runner.model.checkpoint.unpacking.protocol import Config, Headers, Peek, Read, Unreadable, Weight

if TYPE_CHECKING:
    import torch

NAME = "fp8"
PEEKS = False
_SCALE = "_scale_inv"
_INPUTS = (".activation_scale", ".input_scale")  # scales of inputs, which a weight does not depend on


def holds(config: Config) -> bool:
    return config.get("quant_method") == "fp8"


def weights(config: Config, tensors: Headers, peek: Peek) -> list[Weight]:
    found = []
    for name, header in tensors.items():
        if header.dtype != "F8_E4M3":
            continue
        scale = tensors.get(name + _SCALE)
        if scale is None:
            raise Unreadable(f"stores `{name}` as {header.dtype}, and its scales `{name}{_SCALE}` are missing")
        expected = _scales(header.shape, config)
        if prod(scale.shape) != prod(expected):
            raise Unreadable(
                f"stores `{scale.name}` as {list(scale.shape)}; blocks of `{name}` {list(header.shape)} "
                f"need {list(expected)}"
            )
        module = name.rpartition(".")[0]
        extra = tuple(module + each for each in _INPUTS if module + each in tensors)
        found.append(Weight(name, header.shape, (name, scale.name), extra))
    return found


def _scales(shape: tuple[int, ...], config: Config) -> tuple[int, ...]:
    """The shape of the scales of a tensor; one scale where the configuration names no blocks."""
    block = config.get("weight_block_size")
    if not block or len(shape) < 2:
        return (*shape[:-2], 1, 1)
    return (*shape[:-2], -(-shape[-2] // int(block[0])), -(-shape[-1] // int(block[1])))


def unpack(weight: Weight, config: Config, tensors: Headers, read: Read) -> torch.Tensor:
    import torch

    codes, stored = (read(name) for name in weight.sources)
    scale = torch.exp2(stored.float() - 127) if stored.dtype == torch.uint8 else stored.float()
    scale = scale.reshape(_scales(weight.shape, config))
    block = config.get("weight_block_size") or codes.shape[-2:]
    for axis, size in ((-2, int(block[0])), (-1, int(block[1]))):
        if scale.shape[axis] > 1:  # the last block may be shorter
            scale = scale.repeat_interleave(size, axis).narrow(axis, 0, codes.shape[axis])
    return codes.float() * scale

"""MXFP4 as gpt-oss is published (quant_method "mxfp4" of transformers): experts in blocks of 32 four-bit floats.

NAME_blocks  uint8 [experts, out, in / 32, 16]; two codes of float4_e2m1 a byte, the first in its low half
NAME_scales  uint8 [experts, out, in / 32]: the exponent of a block, biased by 127

The model holds NAME as [experts, in, out].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.model.checkpoint.unpacking.protocol import Config, Headers, Peek, Read, Unreadable, Weight

if TYPE_CHECKING:
    import torch

NAME = "MXFP4"
PEEKS = False
_BLOCKS, _SCALES = "_blocks", "_scales"
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def holds(config: Config) -> bool:
    return config.get("quant_method") == "mxfp4"


def weights(config: Config, tensors: Headers, peek: Peek) -> list[Weight]:
    found = []
    for name, header in tensors.items():
        if not name.endswith(_BLOCKS) or header.dtype != "U8":
            continue
        scale = name.removesuffix(_BLOCKS) + _SCALES
        if scale not in tensors:
            raise Unreadable(f"stores `{name}` by MXFP4, and its scales `{scale}` are missing")
        if len(header.shape) != 4 or tensors[scale].shape != header.shape[:3]:
            raise Unreadable(f"stores `{name}` {list(header.shape)} with scales {list(tensors[scale].shape)}")
        experts, rows, groups, half = header.shape
        shape = (experts, groups * half * 2, rows)
        found.append(Weight(name.removesuffix(_BLOCKS), shape, (name, scale)))
    return found


def unpack(weight: Weight, config: Config, tensors: Headers, read: Read) -> torch.Tensor:
    import torch

    blocks, scales = (read(name) for name in weight.sources)
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    values = torch.ldexp(torch.tensor(_VALUES)[codes], scales.int()[..., None] - 127)
    return values.flatten(-2).transpose(1, 2).contiguous()

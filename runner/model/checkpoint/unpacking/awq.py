"""AWQ as AutoAWQ's "gemm" version stores it: 4-bit integers with zero points, packed along the outputs.

qweight  int32 [in, out / 8]; the outputs of a word in the order 0, 2, 4, 6, 1, 3, 5, 7 from its lowest bits on
qzeros   int32 [in / group, out / 8], likewise
scales   fp16 [in / group, out]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.model.checkpoint.formats import awq
from runner.model.checkpoint.unpacking.protocol import Config, Headers, Peek, Read, Unreadable, Weight

if TYPE_CHECKING:
    import torch

NAME = "AWQ"
PEEKS = False


def holds(config: Config) -> bool:
    return config.get("quant_method") == "awq"


def weights(config: Config, tensors: Headers, peek: Peek) -> list[Weight]:
    version, bits = str(config.get("version", "gemm")).lower(), config.get("bits", config.get("w_bit", 4))
    if version != "gemm" or bits != 4:
        raise Unreadable(f"is stored by AWQ's version `{version}` with {bits} bits; `gemm` with 4 can be read")
    found = []
    for name, header in tensors.items():
        module, _, key = name.rpartition(".")
        if key != "qweight":
            continue
        sources = (name, f"{module}.qzeros", f"{module}.scales")
        missing = [each for each in sources if each not in tensors]
        if missing:
            raise Unreadable(f"stores `{name}` by AWQ, and `{missing[0]}` is missing")
        columns, words = header.shape
        groups, rows = tensors[sources[2]].shape
        if rows != words * 8 or columns % groups or tensors[sources[1]].shape != (groups, words):
            shapes = ", ".join(f"`{each}` {list(tensors[each].shape)}" for each in sources)
            raise Unreadable(f"stores tensors by AWQ that do not fit one another: {shapes}")
        found.append(Weight(f"{module}.weight", (rows, columns), sources))
    return found


def unpack(weight: Weight, config: Config, tensors: Headers, read: Read) -> torch.Tensor:
    import torch

    codes, zeros, scales = (read(name) for name in weight.sources)
    size = codes.shape[0] // scales.shape[0]
    steps = awq.unpack_words(codes).to(torch.int8) - awq.unpack_words(zeros).to(torch.int8).repeat_interleave(size, 0)
    return (steps.float() * scales.float().repeat_interleave(size, 0)).T.contiguous()

"""Dense bit packing: small integers into one least-significant-bit-first stream of 32-bit words per row.

Both on-disk formats use this stream; value i of a row starts at bit i·bits. Where bits does not divide 32 (3, 5, 6, 7)
values straddle words; 32 values always fill exactly `bits` words.
"""

from __future__ import annotations

import torch

from runner.model.checkpoint.quantization.scheme import ceil_div


def pack_rows(values: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [R, C], each below 2^bits → int32 [R, ⌈C·bits/32⌉]; the bits after the last value are zero."""
    rows, columns = values.shape
    words = ceil_div(columns * bits, 32)
    padded = ceil_div(columns, 32) * 32
    if padded != columns:
        values = torch.nn.functional.pad(values, (0, padded - columns))
    if 8 % bits == 0:
        per_byte = 8 // bits
        lanes = values.reshape(rows, -1, per_byte)
        octets = lanes[..., 0].clone()
        for lane in range(1, per_byte):
            octets |= lanes[..., lane] << (lane * bits)
    else:  # 8 values fill `bits` bytes: gather them in one 64-bit word and keep its low bytes
        lanes = values.reshape(rows, -1, 8)
        gathered = lanes[..., 0].to(torch.int64)
        for lane in range(1, 8):
            gathered |= lanes[..., lane].to(torch.int64) << (lane * bits)
        octets = gathered.view(torch.uint8).view(rows, -1, 8)[..., :bits].reshape(rows, -1)
    return octets.contiguous().view(torch.int32)[:, :words].contiguous()


def unpack_rows(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """int32 [R, ⌈columns·bits/32⌉] → uint8 [R, columns]; the inverse of `pack_rows`."""
    rows = packed.shape[0]
    packed = packed.contiguous()
    if packed.stride(-1) != 1:  # a single column, of which contiguous() thinks any stride right
        packed = packed.clone(memory_format=torch.contiguous_format)
    octets = packed.view(torch.uint8)
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        lanes = [(octets >> shift) & mask for shift in range(0, 8, bits)]
        return torch.stack(lanes, dim=-1).view(rows, -1)[:, :columns].contiguous()
    spare = -octets.shape[1] % bits
    if spare:
        octets = torch.nn.functional.pad(octets, (0, spare))
    words = torch.nn.functional.pad(octets.view(rows, -1, bits), (0, 8 - bits)).contiguous().view(torch.int64)
    lanes = [((words >> (lane * bits)) & mask).to(torch.uint8) for lane in range(8)]
    return torch.cat(lanes, dim=-1).view(rows, -1)[:, :columns].contiguous()


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """uint8 [R, C], each below 16 → uint8 [R, C / 2], the even column in the low half."""
    return values[:, 0::2] | (values[:, 1::2] << 4)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_nibbles`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)

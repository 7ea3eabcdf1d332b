"""Integers laid out for both operators, taken apart again one by one."""

from __future__ import annotations

import pytest
import torch

from runner.export.integers import blocks, signed
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import integers


def made(rows: int, columns: int, bits: int, group: int | str, symmetric: bool) -> Quantized:
    generator = torch.Generator().manual_seed(bits)
    size = columns if isinstance(group, str) else group
    shape = (1, 1) if group == "tensor" else (rows, -(-columns // size))

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randint(0, 2**bits, sizes, generator=generator, dtype=torch.uint8)

    scale = (torch.rand(shape, generator=generator) + 0.1).to(torch.bfloat16)
    zero = None if symmetric else draw(*shape)
    return Quantized(draw(rows, columns), scale, zero, integers(bits, group, symmetric).weights)


def field(data: torch.Tensor, bits: int, index: int) -> int:
    """Value `index` of a run of bytes."""
    return int(data[index]) if bits == 8 else int(data[index // 2]) >> (4 * (index % 2)) & 15


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group", "columns", "width", "size"), [
    (4, 32, 64, 4, 32), (3, 32, 64, 4, 32), (2, 16, 48, 4, 16), (8, 32, 64, 8, 32), (5, 32, 64, 8, 16),
    (4, 64, 192, 4, 16), (8, "channel", 72, 8, 32), (4, "channel", 72, 4, 32), (4, "tensor", 64, 4, 32),
    (4, 48, 96, 4, 16), (4, 32, 72, 4, 32),
])  # fmt: skip
def test_the_inputs_of_matmulnbits(
    bits: int, group: int | str, columns: int, width: int, size: int, symmetric: bool
) -> None:
    q = made(3, columns, bits, group, symmetric)
    found = blocks(q, width, size, torch.float32)
    count = -(-columns // size)
    assert found.weight.dtype == torch.uint8
    assert tuple(found.weight.shape) == (3, count, size * width // 8)
    assert tuple(found.scales.shape) == (3 * count,)
    assert (found.zero_points is None) == symmetric
    wanted = _exact(q)
    for row in range(3):
        for column in range(count * size):
            block = column // size
            zero = 2 ** (width - 1)
            if found.zero_points is not None:
                zero = field(found.zero_points.reshape(3, -1)[row], width, block)
            value = field(found.weight[row, block], width, column % size)
            if column < columns:
                got = float(found.scales[row * count + block]) * (value - zero)
                assert got == pytest.approx(float(wanted[row, column]), rel=1e-12)
            if column < columns and not symmetric:
                assert value == int(q.integers[row, column])


@pytest.mark.parametrize(
    ("bits", "width", "group"), [(4, 4, 16), (3, 4, 16), (8, 8, 16), (8, 8, "channel"), (4, 4, "tensor")]
)
def test_the_inputs_of_dequantizelinear(bits: int, width: int, group: int | str) -> None:
    q = made(6, 32, bits, group, True)
    found = signed(q, width, torch.float32)
    flat = found.weight.reshape(-1)
    for column in range(32):
        for row in range(6):
            value = field(flat, width, column * 6 + row)
            if width == 4:
                value -= 16 * (value >= 8)
            assert value == int(q.integers[row, column]) - 2 ** (bits - 1)
    if group == 16:
        assert torch.equal(found.scales, q.scale.float().t())
    else:
        assert tuple(found.scales.shape) == ((6,) if group == "channel" else ())


def _exact(q: Quantized) -> torch.Tensor:
    wide = Quantized(q.integers, q.scale.double(), q.zero_point, q.numbers)
    return wide.dequantize(torch.float64)

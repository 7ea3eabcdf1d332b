"""GPTQ on blocks of GGUF against a naive float64 version, with scales and minima as they were found."""

from __future__ import annotations

import pytest
import torch

from runner.export.gguf_layouts import FORMATS
from runner.methods.block_gptq import compensated
from runner.methods.block_quantization import dequantize, quantize
from runner.methods.gptq import factorize
from tests.methods.naive import Points, dampened, gptq, output_error

EVEN = [type for type, format in FORMATS.items() if not format.codebook]


def problem(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), 2 / len(x) * x.T @ x


@pytest.mark.parametrize("type", EVEN)
def test_integers_are_gptqs(type: str) -> None:
    format = FORMATS[type]
    columns, size = max(64, format.size), format.size // format.parts
    weight, h = problem(3, columns)
    weight[1, :size] = 0.0  # its scale is 0
    factor = factorize(h, dampening_fraction=0.01, act_order=True)
    plain = quantize(weight, format, factor.importance())
    found = compensated(weight, plain, format, factor)
    assert found._replace(q=plain.q) == plain
    shift = torch.zeros(3, columns // size) if plain.minimum is None else plain.minimum
    scale = plain.scale
    if plain.scales is not None:
        scale = (plain.scale[..., None] * plain.scales.unflatten(1, (-1, format.parts))).flatten(1)
        if plain.minimum is not None and plain.minima is not None:
            shift = -(plain.minimum[..., None] * plain.minima.unflatten(1, (-1, format.parts))).flatten(1)
    scale = torch.where(scale == 0, 1e30, scale)
    middle = 0 if format.minimum else -format.low + (type == "q8_0")  # of an even number of levels
    levels = format.high + middle + 1
    grid = Points(scale.double().tolist(), [[middle] * scale.shape[1]] * 3, levels, size)
    order = sorted(range(columns), key=lambda j: -float(h[j, j]))
    target = weight.double() - shift.double().repeat_interleave(size, 1)
    wanted = torch.tensor(gptq(target, dampened(h, 0.01), grid, order)) - middle
    assert float((found.q == wanted).float().mean()) > 0.995  # a tie may fall to the other side
    errors = [output_error(dequantize(each, format) - weight, h) for each in (found, plain)]
    assert errors[0] < errors[1]


def test_levels_of_a_table_are_refused() -> None:
    weight, h = problem(2, 32)
    factor = factorize(h, dampening_fraction=0.01, act_order=True)
    with pytest.raises(ValueError, match="levels of a table are not evenly spaced"):
        compensated(weight, quantize(weight, FORMATS["iq4_nl"]), FORMATS["iq4_nl"], factor)

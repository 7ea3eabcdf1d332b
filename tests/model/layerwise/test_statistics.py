"""Second moments against float64, in both precisions, and the determinism of their sums."""

from __future__ import annotations

import pytest
import torch

from runner.model.layerwise import statistics


@pytest.fixture(params=[False, True], ids=["float32", "bf16 products"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both paths, whatever this CPU has."""
    monkeypatch.setattr(statistics, "fast_bf16", lambda: request.param)
    return bool(request.param)


def inputs(tokens: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return (mixed * torch.rand(columns, generator=generator).exp()).bfloat16()


def gram(x: torch.Tensor, batches: int) -> torch.Tensor:
    total = statistics.new_gram(x.shape[1])
    for batch in x.chunk(batches):
        statistics.add_gram(total, batch)
    return statistics.finish_gram(total, x.shape[0])


@pytest.mark.parametrize(("tokens", "columns"), [(50, 1), (300, 20), (700, 300)])
def test_gram_is_the_whole_symmetric_product(
    tokens: int, columns: int, narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 128)
    x = inputs(tokens, columns)
    h = gram(x, 3)
    wide = x.double()
    expected = 2 / tokens * wide.T @ wide
    size = expected.diagonal().sqrt()
    correlation_error = ((h - expected) / (size * size[:, None])).abs().max()
    assert float(correlation_error) <= (2**-9 if narrow else 1e-5)
    assert torch.equal(h, h.T)
    torch.testing.assert_close(h.diagonal().double(), expected.diagonal(), rtol=1e-5, atol=0)


def test_float32_inputs_are_multiplied_as_such(narrow: bool) -> None:
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    expected = 2 / 200 * x.double().T @ x.double()
    torch.testing.assert_close(gram(x, 2).double(), expected, rtol=1e-5, atol=1e-6)


def test_bf16_products_are_noise_beside_the_dampening(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(8192, 96)
    monkeypatch.setattr(statistics, "fast_bf16", lambda: False)
    exact = gram(x, 4)
    monkeypatch.setattr(statistics, "fast_bf16", lambda: True)
    rounded = gram(x, 4)
    dampening = 0.01 * float(exact.diagonal().mean())
    assert float(torch.linalg.matrix_norm((exact - rounded).double(), 2)) < 0.5 * dampening


def test_the_same_batches_give_the_same_bits(narrow: bool) -> None:
    x = inputs(3000, 270)
    assert torch.equal(gram(x, 2), gram(x.clone(), 2))


def test_cross_moment(narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 64)
    full, quantized = inputs(300, 24), inputs(300, 24)
    quantized += 0.1 * inputs(300, 24, seed=1)
    cross = statistics.new_gram(24)
    for whole, part in zip(full.chunk(2), quantized.chunk(2), strict=True):
        statistics.add_cross(cross, whole, part)
    found = statistics.finish_cross(cross, 300).double()
    expected = 2 / 300 * (full.double() - quantized.double()).T @ quantized.double()
    assert float((found - expected).abs().max()) <= (2**-7 if narrow else 1e-5) * float(expected.abs().max())


def test_input_norms() -> None:
    x = inputs(5000, 12)
    sums = statistics.new_square_sums(12)
    for batch in x.chunk(3):
        statistics.add_square_sums(sums, batch)
    assert sums.dtype is torch.float64
    torch.testing.assert_close(statistics.input_norms(sums), x.double().norm(dim=0).float(), rtol=1e-6, atol=0)


def test_bad_activations_show_in_the_statistics(narrow: bool) -> None:
    x = inputs(20, 4)
    x[3, 2] = float("nan")
    h = gram(x, 1)
    assert torch.isnan(h).any(0).tolist() == [True] * 4  # the column meets every other one
    assert torch.isnan(h.diagonal()).tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_collected_flows_on_unchanged(dtype: torch.dtype, narrow: bool) -> None:
    """Inputs of the type that sums are taken in are the tensors of the forward themselves."""
    x = inputs(40, 6).to(dtype)
    other = (x * 1.5).to(dtype)
    kept = x.clone(), other.clone()
    statistics.add_square_sums(statistics.new_square_sums(6), x)
    statistics.add_gram(statistics.new_gram(6), x)
    statistics.add_cross(statistics.new_gram(6), other, x)
    assert torch.equal(x, kept[0])
    assert torch.equal(other, kept[1])

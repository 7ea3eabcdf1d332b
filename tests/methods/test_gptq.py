"""GPTQ's maths against a naive float64 version of the papers, its invariants, and bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import StepFailed
from runner.methods import gptq as gptq_math
from runner.methods.gptq import factorize, output_energy, quantize_weight
from runner.methods.quantization_grid import Grid, make_grid, round_to_grid
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import Numbers
from tests.methods.naive import Points, dampened, gptq, levels_of, output_error


def problem(rows: int, columns: int, seed: int = 0, tokens: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the H of correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    x = x * torch.rand(columns, generator=generator).exp() + 0.5
    return torch.randn(rows, columns, generator=generator), 2 / tokens * x.T @ x


def points(grid: Grid, columns: int) -> Points:
    rows = grid.zeros().double().tolist()
    return Points(grid.scale.double().tolist(), rows, int(grid.levels.reach), grid.levels.numbers.columns(columns))


def order_of(hessian: torch.Tensor, act_order: bool) -> list[int]:
    columns = hessian.shape[0]
    diagonal = hessian.diagonal().tolist()
    return sorted(range(columns), key=lambda j: -diagonal[j]) if act_order else list(range(columns))


def dequantized(grid: Grid, integers: torch.Tensor) -> torch.Tensor:
    """In float32, without the reader's last rounding."""
    spread = torch.arange(integers.shape[1]) // grid.levels.numbers.columns(integers.shape[1])
    return grid.scale[:, spread] * (integers - grid.zeros()[:, spread])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [8, 16, None])
@pytest.mark.parametrize("bits", [2, 4])
def test_the_integers_are_those_of_the_papers_elimination(
    bits: int, group_size: int | None, symmetric: bool, act_order: bool
) -> None:
    weight, hessian = problem(5, 40, seed=bits)
    grid = make_grid(weight, levels_of(bits, group_size, symmetric), "weighted_mse", hessian.diagonal())
    factor = factorize(hessian, dampening_fraction=0.01, act_order=act_order)
    solution = quantize_weight(weight, factor, grid)
    expected = gptq(weight, dampened(hessian, 0.01), points(grid, 40), order_of(hessian, act_order))
    assert solution.quantized.integers.tolist() == expected
    assert factor.dampening == 0.01
    left = weight - dequantized(grid, solution.quantized.integers)
    torch.testing.assert_close(float(solution.error.sum()), output_error(left, hessian), rtol=1e-3, atol=0)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_gptaq_is_that_of_the_paper(alpha: float, act_order: bool) -> None:
    weight, hessian = problem(4, 32)
    noise = torch.randn(32, 32, generator=torch.Generator().manual_seed(5))
    cross = 0.02 * noise @ hessian
    grid = make_grid(weight, levels_of(4, 16), "weighted_mse", hessian.diagonal())
    factor = factorize(hessian, dampening_fraction=0.01, act_order=act_order, cross=cross, alpha=alpha)
    solution = quantize_weight(weight, factor, grid)
    order = order_of(hessian, act_order)
    expected = gptq(weight, dampened(hessian, 0.01), points(grid, 32), order, cross, alpha)
    assert solution.quantized.integers.tolist() == expected
    plain = quantize_weight(weight, factorize(hessian, dampening_fraction=0.01, act_order=act_order), grid)
    assert plain.quantized.integers.tolist() != expected


def test_gptaq_without_a_difference_or_without_strength_is_gptq() -> None:
    weight, hessian = problem(4, 32)
    grid = make_grid(weight, levels_of(4, 16), "mse")
    plain = quantize_weight(weight, factorize(hessian, dampening_fraction=0.01, act_order=True), grid)
    for cross, alpha in ((torch.zeros_like(hessian), 1.0), (hessian, 0.0)):
        factor = factorize(hessian, dampening_fraction=0.01, act_order=True, cross=cross, alpha=alpha)
        assert torch.equal(quantize_weight(weight, factor, grid).quantized.integers, plain.quantized.integers)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_zeros_stay_and_the_rest_makes_up_for_them(symmetric: bool, alpha: float) -> None:
    weight, hessian = problem(6, 32)
    weight = weight.masked_fill(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5, 0.0)
    grid = make_grid(weight, levels_of(3, 16, symmetric), "weighted_mse", hessian.diagonal())
    cross = 0.1 * hessian.tril()
    factor = factorize(hessian, dampening_fraction=0.01, act_order=True, cross=cross, alpha=alpha)
    solution = quantize_weight(weight, factor, grid, keep_zeros=True)
    assert bool((solution.quantized.dequantize(torch.float32)[weight == 0] == 0).all())
    expected = gptq(
        weight, dampened(hessian, 0.01), points(grid, 32), order_of(hessian, True), cross, alpha, keep_zeros=True
    )
    assert solution.quantized.integers.tolist() == expected


def test_a_wide_problem_is_solved_as_a_single_block_would(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(7, 300, tokens=900)
    grid = make_grid(weight, levels_of(4, 64), "mse")
    factor = factorize(hessian, dampening_fraction=0.01, act_order=True)
    blocked = quantize_weight(weight, factor, grid)
    monkeypatch.setattr(gptq_math, "BLOCK", 1000)
    monkeypatch.setattr(gptq_math, "INNER", 1000)
    monkeypatch.setattr(gptq_math, "ROWS", 3)
    whole = quantize_weight(weight, factor, grid)
    same = whole.quantized.integers == blocked.quantized.integers
    assert float(same.float().mean()) > 0.999  # a tie may fall to the other side
    torch.testing.assert_close(whole.error.sum(), blocked.error.sum(), rtol=1e-2, atol=0)


def test_rows_are_independent() -> None:
    weight, hessian = problem(9, 48)
    factor = factorize(hessian, dampening_fraction=0.01, act_order=True)
    grid = make_grid(weight, levels_of(4, 16), "mse")
    together = quantize_weight(weight, factor, grid)
    apart = [quantize_weight(weight[i : i + 1], factor, grid.rows(slice(i, i + 1))) for i in range(9)]
    assert torch.equal(together.quantized.integers, torch.cat([s.quantized.integers for s in apart]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 5), columns=st.integers(1, 24), bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(), act_order=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_comes_out_as_good_as_the_papers(
    rows: int, columns: int, bits: int, symmetric: bool, act_order: bool, seed: int
) -> None:
    weight, hessian = problem(rows, columns, seed)
    grid = make_grid(weight, levels_of(bits, None, symmetric), "minmax")
    solution = quantize_weight(weight, factorize(hessian, dampening_fraction=0.01, act_order=act_order), grid)
    expected = gptq(weight, dampened(hessian, 0.01), points(grid, columns), order_of(hessian, act_order))
    ours = output_error(weight - dequantized(grid, solution.quantized.integers), hessian)
    theirs = output_error(weight - dequantized(grid, torch.tensor(expected)), hessian)
    assert ours == pytest.approx(theirs, rel=0.05)  # equal but where float32 sees a tie that float64 does not
    assert int(solution.quantized.integers.max()) < 2**bits


def test_correlated_inputs_lose_less_than_by_rounding_to_nearest() -> None:
    weight, hessian = problem(32, 64)
    grid = make_grid(weight, levels_of(3, 32), "mse")
    losses = []
    for act_order in (True, False):
        solution = quantize_weight(weight, factorize(hessian, dampening_fraction=0.01, act_order=act_order), grid)
        losses.append(output_error(weight - dequantized(grid, solution.quantized.integers), hessian))
    nearest = output_error(weight - dequantized(grid, round_to_grid(weight, grid).integers), hessian)
    assert losses[0] < losses[1] < 0.6 * nearest


def test_the_same_problem_gives_the_same_bits() -> None:
    weight, hessian = problem(33, 130)
    results = []
    for _ in range(3):
        factor = factorize(hessian, dampening_fraction=0.01, act_order=True)
        grid = make_grid(weight, levels_of(4, 64), "weighted_mse", hessian.diagonal())
        results.append(quantize_weight(weight, factor, grid))
    assert all(torch.equal(r.quantized.integers, results[0].quantized.integers) for r in results)
    assert all(torch.equal(r.error, results[0].error) for r in results)


def test_a_column_that_is_never_fed_becomes_zero_and_disturbs_nothing() -> None:
    weight, hessian = problem(5, 20)
    hessian[7, :] = 0
    hessian[:, 7] = 0
    grid = make_grid(weight, levels_of(4, None), "mse")
    factor = factorize(hessian, dampening_fraction=0.01, act_order=True)
    solution = quantize_weight(weight, factor, grid)
    assert factor.dead.nonzero().view(-1).tolist() == [7]
    assert bool((solution.quantized.integers[:, 7] == 8).all())
    others = [j for j in range(20) if j != 7]
    rest = dampened(hessian, 0.01)[others][:, others]
    order = [others.index(j) for j in order_of(hessian, True) if j != 7]
    kept = solution.quantized.integers[:, others]
    assert kept.tolist() == gptq(weight[:, others], rest, points(grid, 20), order)


@pytest.mark.parametrize("act_order", [False, True])
def test_importance_is_what_the_columns_still_to_come_cannot_make_up_for(act_order: bool) -> None:
    torch.manual_seed(3)
    x = torch.randn(64, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    x[:, 5] = 0
    hessian = 2 / 64 * x.T @ x
    factor = factorize(hessian.float(), dampening_fraction=0.01, act_order=act_order)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    found = factor.importance()
    for place, column in enumerate(factor.order.tolist()):
        later = factor.order[:place]  # rounded after this one
        told = damped[later, column] @ torch.linalg.solve(damped[later][:, later], damped[later, column])
        expected = 0.0 if column == 5 else float(damped[column, column] - told)
        assert float(found[column]) == pytest.approx(expected, rel=1e-3)


def test_all_columns_dead() -> None:
    weight, _ = problem(3, 8)
    factor = factorize(torch.zeros(8, 8), dampening_fraction=0.01, act_order=True)
    solution = quantize_weight(weight, factor, make_grid(weight, levels_of(4), "weighted_mse", torch.zeros(8)))
    assert bool((solution.quantized.dequantize(torch.float32) == 0).all())
    assert solution.error.tolist() == [0, 0, 0]


def test_one_column_is_rounded_to_nearest() -> None:
    weight = torch.tensor([[0.7], [-1.0], [0.0]])
    grid = make_grid(weight, levels_of(4), "minmax")
    solution = quantize_weight(weight, factorize(torch.ones(1, 1), dampening_fraction=0.01, act_order=True), grid)
    assert solution.quantized.integers.tolist() == [[15], [1], [8]]


def test_a_singular_second_moment_is_dampened_until_it_factorizes() -> None:
    weight, _ = problem(3, 16)
    row = torch.randn(1, 16, generator=torch.Generator().manual_seed(2)) * 1e4
    hessian = row.T @ row  # rank one
    factor = factorize(hessian, dampening_fraction=0.0, act_order=True)
    assert 0 < factor.dampening <= 0.01
    assert bool(torch.isfinite(factor.feedback).all())
    kept = factorize(hessian, dampening_fraction=0.01, act_order=True)
    assert kept.dampening == 0.01
    solution = quantize_weight(weight, kept, make_grid(weight, levels_of(4), "mse"))
    assert bool(torch.isfinite(solution.error).all())


def test_a_huge_dynamic_range_stays_finite() -> None:
    weight, hessian = problem(4, 24)
    size = torch.logspace(-12, 12, 24)
    hessian = hessian * size * size[:, None]
    factor = factorize(hessian, dampening_fraction=0.01, act_order=True)
    solution = quantize_weight(weight, factor, make_grid(weight, levels_of(4), "weighted_mse", hessian.diagonal()))
    assert bool(torch.isfinite(factor.feedback).all())
    assert bool(torch.isfinite(solution.error).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(value: float) -> None:
    _, hessian = problem(1, 6)
    hessian[2, 4] = hessian[4, 2] = value
    with pytest.raises(StepFailed) as caught:
        factorize(hessian, dampening_fraction=0.01, act_order=True)
    assert caught.value.render() == (
        "error: the calibration statistics are not finite in 2 of 6 input columns\n"
        "help: activations overflow on this calibration data: check the checkpoint, or store it in another dtype"
    )


def test_a_matrix_that_stays_indefinite_is_refused() -> None:
    with pytest.raises(StepFailed) as caught:
        factorize(torch.diag(torch.tensor([-100.0, 1.0, 1.0])), dampening_fraction=0.01, act_order=False)
    assert caught.value.render() == (
        "error: the second moment of the inputs is not positive definite, whatever is added to its diagonal\n"
        "help: give more calibration samples, or other calibration data"
    )


def test_output_energy_is_the_diagonal_of_the_quadratic_form() -> None:
    weight, hessian = problem(5, 300, tokens=900)
    expected = torch.einsum("ri,ij,rj->r", weight.double(), hessian.double(), weight.double())
    torch.testing.assert_close(output_energy(weight, hessian).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "numbers",
    [Numbers("float8_e4m3", "channel"), Numbers("float8_e4m3", (16, 16)), Numbers("float4_e2m1", 16)],
    ids=Numbers.describe,
)
def test_floats_lose_less_by_gptq_than_by_rounding(numbers: Numbers) -> None:
    weight, hessian = problem(24, 40)
    levels = Levels(numbers, torch.float32)
    factor = factorize(hessian, dampening_fraction=0.01, act_order=True)
    grid = make_grid(weight, levels, "weighted_mse", hessian.diagonal())
    solution = quantize_weight(weight, factor, grid, keep_zeros=True)
    rounded = round_to_grid(weight, grid).dequantize(torch.float32)
    back = solution.quantized.dequantize(torch.float32)
    assert solution.quantized.numbers == numbers
    lost, before = (float(output_energy(weight - made, hessian).sum()) for made in (back, rounded))
    assert lost < before
    assert lost == pytest.approx(float(solution.error.sum()), rel=1e-3)
    steps = back / grid.by_row(24).scale.repeat_interleave(grid.by_row(24).levels.numbers.columns(40), 1)[:, :40]
    assert torch.allclose(steps, levels.nearest_(steps.clone(), torch.zeros(1)), rtol=1e-5)

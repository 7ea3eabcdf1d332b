"""EoRA's maths against the paper's closed form in float64, and against every other term of the rank."""

from __future__ import annotations

import pytest
import torch

from runner.methods import low_rank

WIDTHS = pytest.mark.parametrize(("out_features", "in_features"), [(24, 40), (40, 24), (32, 32)])


def problem(out_features: int, in_features: int, tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """An error [out, in] and the second moment [in, in] of inputs of very different sizes, both float64."""
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(out_features, in_features, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, in_features, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(in_features, in_features, generator=generator, dtype=torch.float64)
    x *= torch.logspace(-1.5, 1, in_features, dtype=torch.float64)
    return error, 2 / tokens * x.T @ x


def paper(error: torch.Tensor, moment: torch.Tensor, rank: int) -> torch.Tensor:
    """B A by the paper's steps: H = Q Λ Qᵀ, the SVD of E Q Λ^½, and Λ^-½ Qᵀ to go back."""
    values, q = torch.linalg.eigh(moment)
    u, s, v = torch.linalg.svd(error @ q * values.sqrt(), full_matrices=False)
    product: torch.Tensor = (u[:, :rank] * s[:rank]) @ (v[:rank] / values.sqrt()) @ q.T
    return product


def size(error: torch.Tensor, moment: torch.Tensor) -> float:
    return float((error @ moment @ error.T).trace())


@WIDTHS
@pytest.mark.parametrize("rank", [1, 5, 24])
def test_it_is_the_papers_term(out_features: int, in_features: int, rank: int) -> None:
    error, moment = problem(out_features, in_features)
    a, b = low_rank.compensate(error.float(), moment.float(), rank)
    assert (a.shape, b.shape) == ((rank, in_features), (out_features, rank))
    ours, theirs = (b @ a).double(), paper(error, moment, rank)
    whole = size(error, moment)
    assert size(ours - theirs, moment) < 1e-6 * whole
    singular = torch.linalg.svdvals(error @ torch.linalg.cholesky(moment))
    optimum = float(singular[rank:].square().sum())
    assert size(error - ours, moment) == pytest.approx(optimum, rel=1e-4, abs=1e-6 * whole)


@WIDTHS
def test_no_other_term_of_the_rank_is_better(out_features: int, in_features: int) -> None:
    """Neither the term that ignores the inputs, nor a small step away from the best one."""
    error, moment = problem(out_features, in_features)
    a, b = (t.double() for t in low_rank.compensate(error.float(), moment.float(), 4))
    best = size(error - b @ a, moment)
    u, s, v = torch.linalg.svd(error, full_matrices=False)
    assert best < 0.9 * size(error - (u[:, :4] * s[:4]) @ v[:4], moment)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        da, db = (0.01 * t.norm() * torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (a, b))
        assert best < size(error - (b + db) @ (a + da), moment)


def test_both_factors_are_of_one_size() -> None:
    error, moment = problem(24, 40)
    a, b = low_rank.compensate(error.float(), moment.float(), 6)
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-4)


@WIDTHS
def test_no_error_takes_no_term(out_features: int, in_features: int) -> None:
    moment = problem(out_features, in_features)[1].float()
    a, b = low_rank.compensate(torch.zeros(out_features, in_features), moment, 3)
    assert not a.any()
    assert not b.any()


def test_damping_is_raised_until_a_moment_can_be_factorized() -> None:
    moment = torch.diag(torch.tensor([2.0, 2.0, -0.1]))  # as rounding may leave one of dependent inputs
    assert torch.allclose(low_rank.damped(moment, 0.01), moment + 0.1 * 1.3 * torch.eye(3))
    assert torch.allclose(low_rank.damped(moment.abs(), 0.5), moment.abs() + 0.5 * 4.1 / 3 * torch.eye(3))


def test_inputs_that_are_always_zero_count_alike() -> None:
    assert torch.equal(low_rank.damped(torch.zeros(3, 3), 0.01), torch.eye(3))


def test_fewer_tokens_than_columns() -> None:
    """A singular moment: the term is still the best for the inputs that were seen."""
    generator = torch.Generator().manual_seed(2)
    error, x = torch.randn(16, 24, generator=generator), torch.randn(6, 24, generator=generator)
    moment = x.T @ x
    a, b = low_rank.compensate(error, low_rank.damped(moment, 1e-4), 6)
    assert size((error - b @ a).double(), moment.double()) < 1e-4 * size(error.double(), moment.double())


def test_energy() -> None:
    error, moment = problem(8, 12)
    assert low_rank.energy(error.float(), moment.float()) == pytest.approx(size(error, moment), rel=1e-5)


@WIDTHS
def test_what_is_asked_for_is_what_the_original_inputs_give(out_features: int, in_features: int) -> None:
    """W + W C H⁻¹ is the least-squares fit of W X° by a weight on X, as a solver finds it from the inputs."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(out_features, in_features, generator=generator, dtype=torch.float64)
    original = torch.randn(400, in_features, generator=generator, dtype=torch.float64)
    mixed = torch.randn(in_features, in_features, generator=generator, dtype=torch.float64) / in_features**0.5
    x = original + 0.3 * original @ mixed + 0.1 * torch.randn(400, in_features, generator=generator).double()
    fitted = torch.linalg.lstsq(x, original @ weight.T).solution.T
    cross, moment = (2 / 400 * m for m in ((original - x).T @ x, x.T @ x))
    shifted = low_rank.shift(weight.float(), cross.float(), moment.float()).double()
    assert (fitted - weight).norm() > 0.1 * weight.norm()
    torch.testing.assert_close(weight + shifted, fitted, atol=1e-4, rtol=1e-3)
    error = fitted - weight
    a, b = low_rank.compensate(shifted.float(), moment.float(), 5)
    assert size(error - (b @ a).double(), moment) < size(error, moment)

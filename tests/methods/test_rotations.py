"""Hadamard matrices and rotations: H Hᵀ = n I, Q Qᵀ = I, and what a rotation keeps."""

from __future__ import annotations

import pytest
import torch

from runner.methods.hadamard_orders import hadamard_order
from runner.methods.rotations import hadamard, rotation


@pytest.mark.parametrize("n", [n for n in range(1, 160) if hadamard_order(n)])
def test_hadamard_matrices_are_orthogonal_and_start_with_ones(n: int) -> None:
    found = hadamard(n)
    assert set(found.flatten().tolist()) <= {1.0, -1.0}
    assert torch.equal(found @ found.T, n * torch.eye(n, dtype=torch.float64))
    assert bool((found[0] == 1).all())
    assert bool((found[:, 0] == 1).all())


def test_which_orders_there_are() -> None:
    """Of the multiples of four up to 160, Sylvester and Paley over prime fields leave out five."""
    assert [n for n in range(4, 161, 4) if not hadamard_order(n)] == [52, 92, 100, 116, 156]
    assert not any(hadamard_order(n) for n in (0, 3, 6, 10, 14, 30))
    sizes = (576, 768, 896, 960, 1152, 1536, 2048, 2304, 2560, 3072, 3584, 3840, 4096, 4544, 5120, 5376, 7168, 8192)
    assert all(map(hadamard_order, sizes))
    with pytest.raises(ValueError, match=r"^no Hadamard matrix of order 52 by Sylvester's and Paley's constructions$"):
        hadamard(52)


@pytest.mark.parametrize("keeps_mean", [False, True])
@pytest.mark.parametrize("kind", ["hadamard", "orthogonal"])
@pytest.mark.parametrize(("n", "block"), [(24, 24), (24, 12), (24, 4), (144, 144), (576, 576)])
def test_rotations_are_orthogonal(n: int, block: int, kind: str, keeps_mean: bool) -> None:
    turn = rotation(n, block, kind, 1, keeps_mean=keeps_mean)
    matrix = turn.matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64))
    outside = torch.block_diag(*[torch.ones(block, block)] * (n // block)) == 0
    assert float(matrix[outside].abs().sum()) == 0
    ones = torch.ones(n, dtype=torch.float64)
    if keeps_mean:
        torch.testing.assert_close(matrix.sum(0), ones)
        torch.testing.assert_close(matrix.sum(1), ones)
    elif kind == "hadamard":
        torch.testing.assert_close(matrix.abs().amax(1), ones / block**0.5)
    x = torch.randn(3, 5, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(turn.apply(x), x @ matrix)


def test_equal_seeds_give_equal_rotations() -> None:
    one, same, other = (rotation(32, 32, "orthogonal", seed).matrix() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_blocks_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^blocks of 5 do not divide 24 channels$"):
        rotation(24, 5, "hadamard", 0)

"""The kernel of one block against the operations that do the same on a CPU.

On a GPU as it runs there; with Triton but no GPU in Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from runner.methods import gptq
from runner.methods.gptq import factorize
from runner.methods.quantization_grid import make_grid
from tests.methods.naive import levels_of
from tests.methods.test_gptq import problem

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="there is no GPU"),
]
DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(5, 16), (40, 128), (33, 100)])
def test_the_kernel_rounds_as_the_operations_do(rows: int, columns: int, symmetric: bool, keep: bool) -> None:
    from runner.methods.gptq_triton import round_block

    weight, hessian = problem(rows, columns, seed=3)
    weight[:, ::3] *= 0.0 if keep else 1.0
    weight, hessian = weight.to(DEVICE), hessian.to(DEVICE)
    factor = factorize(hessian, dampening_fraction=0.01, act_order=True)
    grid = make_grid(weight, levels_of(4, 16, symmetric), "mse")
    levels = gptq._Levels(grid, rows, factor.order)
    target = weight.T.index_select(0, factor.order)
    block = slice(0, columns)
    values, errors = target.clone(), torch.full_like(target, torch.nan)
    expected_values, expected_errors = values.clone(), errors.clone()
    expected = gptq._round_block(expected_values, target, expected_errors, factor.feedback, levels, block, keep)
    steps = round_block(
        values, target, errors, factor.feedback, levels.scale, levels.zero, levels.top, levels.group, keep
    )
    # Sums are added in another order: a value between two integers may go to the other one, and its row's after it.
    alike = (steps == expected).float().mean()
    assert alike > 0.98
    same_rows = (steps == expected).all(0)
    assert same_rows.any()
    torch.testing.assert_close(errors[:, same_rows], expected_errors[:, same_rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values[:, same_rows], expected_values[:, same_rows], rtol=1e-3, atol=1e-4)
    if keep:
        assert not steps[target == 0].any()

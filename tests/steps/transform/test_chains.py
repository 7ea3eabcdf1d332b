"""A rewrite, then a quantization: transformers computes of the result what evaluations here do.

Gemma 2 multiplies by 1 + the weight of a norm and has norms behind its blocks; Qwen3 has norms on queries and keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.steps.kinds import find
from tests.host import Host
from tests.steps.quantize.test_scheme_sweep import reference, source
from tests.steps.quantize.test_schemes import IDS, measured
from tests.steps.transform.checkpoints import distance, logits

REWRITES: dict[str, dict[str, Any]] = {"smooth": {}, "awq": {"scheme": "w8a8"}, "rotate": {}}
SOLVERS = ("quantize.rtn", "quantize.gptq", "quantize.signround")


def chained(folder: Path, name: str, rewrite: str, solver: str) -> None:
    dense = source(folder / "model", name, torch.float32)
    params = REWRITES[rewrite] | ({"residual": False} if rewrite == "rotate" and name == "gemma2" else {})
    first = Host(folder / "first", f"transform.{rewrite}", dense, None if rewrite == "rotate" else IDS, **params)
    find(f"transform.{rewrite}").run(first)
    assert distance(logits(dense, IDS), logits(first.out_dir, IDS)) < 1e-5
    ids = None if solver == "quantize.rtn" else IDS
    second = Host(folder / "second", solver, first.out_dir, ids, scheme="w8a8")
    find(solver).run(second)
    ours, theirs = measured(second.out_dir, folder / "measured"), reference(second.out_dir)
    before = measured(dense, folder / "dense")
    assert ours == pytest.approx(theirs, rel=2e-3)
    assert ours == pytest.approx(before, rel=0.05)  # 8 bits of an unchanged function
    assert ours != before


@pytest.mark.parametrize(("name", "rewrite"), [("gemma2", "smooth"), ("qwen3", "awq")])
def test_a_rewritten_model_is_quantized(name: str, rewrite: str, tmp_path: Path) -> None:
    chained(tmp_path, name, rewrite, "quantize.gptq")


@pytest.mark.nightly
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_every_rewrite_and_solver(name: str, rewrite: str, solver: str, tmp_path: Path) -> None:
    chained(tmp_path, name, rewrite, solver)

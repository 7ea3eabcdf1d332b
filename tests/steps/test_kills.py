"""SIGKILL at random moments, in a process of its own, until the step is done: the bytes of an uninterrupted run."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.steps.kinds import find
from tests.host import Host
from tests.tiny import save, tokens

KILLS = 6
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "smooth": ("transform.smooth", {}),
    "awq": ("transform.awq", {"bits": 3, "group_size": 16, "clip": True}),
    "rotate": ("transform.rotate", {}),
    "signround": ("quantize.signround", {"bits": 3, "group_size": 16}),
    "signround on two flows": ("quantize.signround", {"scheme": "fp8", "start": "rounding", "steps": 4}),
    "sparsegpt": ("prune.sparsegpt", {"pattern": "2:4"}),
    "sparsegpt with OWL": ("prune.sparsegpt", {"sparsity": 0.5, "allocation": "owl"}),
    "width": ("prune.width", {"feed_forward": {"drop": 0.25}, "hidden_size": {"keep": 24}, "multiple_of": 8}),
    "depth": ("prune.depth", {"drop": 2}),
    "depth by perplexity": ("prune.depth", {"drop": 2, "choose": "perplexity"}),
    "kv": ("quantize.kv", {"per": "head"}),
    "weighted rounding": ("quantize.rtn", {"bits": 3, "group_size": 16, "grid": "weighted_mse"}),
}
# Processes start from one that has imported everything and run nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.steps.test_kills", "transformers", "runner.model.layerwise.engine"])


def run(kind: str, params: dict[str, Any], checkpoint: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    ids = None if kind == "transform.rotate" else tokens()
    find(kind).run(Host(folder, kind, checkpoint, ids, **params))


def started(kind: str, params: dict[str, Any], checkpoint: Path, folder: Path) -> multiprocessing.Process:
    process = PROCESSES.Process(target=run, args=(kind, params, checkpoint, folder))
    process.start()
    return process  # type: ignore[return-value]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_a_killed_step_ends_with_the_same_bytes(case: str, tmp_path: Path) -> None:
    kind, params = CASES[case]
    checkpoint = save(tmp_path / "model", "qwen3", torch.bfloat16, num_hidden_layers=6)
    begun = time.monotonic()
    whole = started(kind, params, checkpoint, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    longest = time.monotonic() - begun
    expected, chance, killed = digests(tmp_path / "whole" / "out"), random.Random(case), 0
    for _ in range(20 * KILLS):
        process = started(kind, params, checkpoint, tmp_path / "killed")
        process.join(chance.uniform(0, 1.2 * longest) if killed < KILLS else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
            continue
        assert process.exitcode == 0
        assert digests(tmp_path / "killed" / "out") == expected
        if killed >= KILLS:
            return
        shutil.rmtree(tmp_path / "killed")
    pytest.fail("the step was killed too rarely")

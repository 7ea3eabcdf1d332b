"""Steps that run at the same time give the bytes of steps that run one after another."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.api import execution, plans, recipes
from runner.execute.application import Manner
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job.store import Store
from runner.progress.events import Sink

MATRIX = """\
version: 1
name: many
params: {bits: 4, sparsity: 0.5}
matrix: {bits: [3, 4], sparsity: [0.25, 0.5]}
model: {source: demo:tiny-llama}
data:
  text: {source: demo:stdlib, split: calibration, samples: 4, sequence_length: 32}
steps:
  - evaluate.perplexity: {data: text}
    id: before
  - prune.magnitude: {sparsity: "${sparsity}"}
  - quantize.gptq: {data: text, bits: "${bits}", group_size: 32}
  - evaluate.perplexity:
      data: text
      gates: {perplexity: {max_ratio_to: before, value: 100}}
    id: after
"""


def applied(file: Path, jobs: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Apply all jobs with up to `at_once` steps at the same time; the digest of every result."""
    monkeypatch.delenv("RUNNER_STEPS_PATH")
    planned = [plans.plan(recipe, jobs=jobs, device="cpu") for recipe in recipes.load_all(file)]
    settings = ApplySettings("again", threads=1, jobs_at_once=at_once)
    sinks: list[list[Sink]] = [[] for _ in planned]
    ends = execution.run_all(planned, settings, sinks=sinks, stopping=Stopping(), manner=Manner())
    assert [end.code for end in ends] == [0] * 4
    store = Store(jobs / "store")
    return {key: entry.record.digest for key in store.keys() if (entry := store.entry(key)) is not None}  # noqa: SIM118


@pytest.mark.nightly
def test_real_steps_at_once_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "many.yaml"
    file.write_text(MATRIX)
    with monkeypatch.context() as patch:
        alone = applied(file, tmp_path / "alone", 1, patch)
    with monkeypatch.context() as patch:
        together = applied(file, tmp_path / "together", 3, patch)
    assert len(alone) == 1 + 2 + 4 + 4
    assert together == alone

"""Gates that refer to other jobs, and when the accepted job moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.errors import UsageError
from runner.job import accepted
from tests.execute.applying import Kept, applied
from tests.job.plans import plan


def scored(perplexity: float, rule: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    gates = {"perplexity": rule if rule is not None else {"max_ratio_to": "accepted", "value": 1.01}}
    return [
        {"id": "quality", "kind": "fake.score", "params": {"perplexity": perplexity}, "produces": "metrics",
         "gates": gates},
    ]  # fmt: skip


def pointed(jobs: Path) -> str | None:
    found = accepted.read(jobs, "demo", {})
    return found.job if found is not None else None


def text(kept: Kept) -> str:
    return str(kept.one("gate")["text"])


def test_the_first_job_is_accepted_and_a_worse_one_is_not(tmp_path: Path) -> None:
    assert pointed(tmp_path) is None
    code, kept = applied(tmp_path, scored(20.0))
    assert code == 0
    assert text(kept) == (
        "`perplexity` is 20; no job of this recipe is accepted yet, so there is nothing to compare it with"
    )
    first = plan(scored(20.0)).job_id
    assert pointed(tmp_path) == first

    code, kept = applied(tmp_path, scored(20.5))
    assert (code, pointed(tmp_path)) == (3, first)
    assert text(kept) == "`perplexity` is 20.5, 0.3 above its limit 20.2 (1.01 × `accepted` 20)"
    assert (tmp_path / plan(scored(20.5)).job_id / "steps" / "01-quality").is_dir()

    code, kept = applied(tmp_path, scored(20.1))
    assert (code, pointed(tmp_path)) == (0, plan(scored(20.1)).job_id)
    assert text(kept) == "`perplexity` is 20.1, within its limit 20.2 (1.01 × `accepted` 20)"


def test_a_failed_job_is_not_accepted(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"layer": 1, "do": "fail"}))
    steps = [{"id": "layers", "kind": "fake.layers", "params": {"layers": 2, "control": str(control)}}]
    assert applied(tmp_path, steps)[0] == 1
    assert pointed(tmp_path) is None


def test_accepted_by_hand(tmp_path: Path) -> None:
    applied(tmp_path, scored(20.0))
    assert applied(tmp_path, scored(25.0))[0] == 3
    moved = accepted.accept(tmp_path, plan(scored(25.0)).job_id)
    assert (moved.by, moved.metrics["quality"]) == ("hand", {"perplexity": 25.0})
    assert applied(tmp_path, scored(25.2))[0] == 0


def test_the_accepted_job_may_be_gone(tmp_path: Path) -> None:
    from runner.job import listing

    applied(tmp_path, scored(20.0))
    listing.remove(tmp_path, plan(scored(20.0)).job_id)
    assert applied(tmp_path, scored(20.5))[0] == 3


def test_a_step_that_the_accepted_job_has_not_passes_no_gate(tmp_path: Path) -> None:
    applied(tmp_path, scored(20.0))
    code, kept = applied(tmp_path, scored(20.0, {"max_ratio_to": "accepted/other", "value": 1.01}))
    assert code == 3
    assert text(kept) == "`perplexity` is 20 and its limit nan: NaN passes no gate (1.01 × `accepted/other`)"


def test_a_named_job(tmp_path: Path) -> None:
    applied(tmp_path, scored(20.0, {"max": 30}))
    id = plan(scored(20.0, {"max": 30})).job_id
    code, kept = applied(tmp_path, scored(18.0, {"max_ratio_to": f"job:{id}/quality", "value": 0.8}))
    assert code == 3
    assert text(kept) == f"`perplexity` is 18, 2 above its limit 16 (0.8 × `job:{id}/quality` 20)"


def test_a_named_job_that_did_not_measure_it_is_told_before_anything_runs(tmp_path: Path) -> None:
    applied(tmp_path, scored(20.0, {"max": 30}))
    id = plan(scored(20.0, {"max": 30})).job_id
    with pytest.raises(UsageError) as caught:
        applied(tmp_path, scored(18.0, {"max_ratio_to": f"job:{id}/other", "value": 0.8}))
    assert caught.value.render() == (
        f"error: a gate of `quality` refers to `perplexity` of step `other` in job `{id}`, which measured none\n"
        f"help: there it was measured by `quality`; write `job:{id}/STEP`"
    )

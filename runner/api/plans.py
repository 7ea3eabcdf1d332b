"""Plan a recipe: every step with its key, its state in the store, and what it would cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.api.folders import digest_cache, jobs_folder
from runner.errors import UsageError
from runner.job.directory import read_json
from runner.job.store import Store
from runner.model.architecture import remote_code
from runner.plan import lock_file, preview, resolve
from runner.plan.resources import Offer
from runner.plan.types import Forecast, Plan, Preview
from runner.recipe.types import Recipe
from runner.report import preview as preview_report


@dataclass(frozen=True, repr=False)
class JobPlan:
    """The plan of one job: what `apply` would do in the jobs folder `jobs`, and what it would cost. Nothing ran yet.

    `preview` has the resolved `plan` and a forecast for each of its steps.
    """

    preview: Preview
    jobs: Path
    trust_remote_code: bool = False

    def __repr__(self) -> str:
        states = list(self.states.values())
        counts = [f"{states.count(state)} to {state}" for state in ("run", "resume") if state in states]
        return f"<runner.JobPlan {self.job_id}: {', '.join(counts) or 'every step cached'}>"

    @property
    def plan(self) -> Plan:
        """The resolved recipe: model, data, and the steps in order with their parameters and keys."""
        return self.preview.plan

    @property
    def job_id(self) -> str:
        """The id of the job that applying this plan makes: the recipe's name and the beginning of the plan's key."""
        return self.plan.job_id

    @property
    def steps(self) -> tuple[Forecast, ...]:
        """The forecast of every step: `step`, `state` ("cached", "resume", "run"), `reason`, and `cost`.

        `cost` has `memory`, `disk` and `scratch` in bytes, and `seconds`.
        """
        return self.preview.forecasts

    @property
    def states(self) -> dict[str, str]:
        """The state of every step by its id: "cached", "resume" or "run"."""
        return {forecast.step.id: forecast.state for forecast in self.steps}

    @property
    def seconds(self) -> float:
        """The forecast of the time that the steps take which are not cached."""
        return sum(forecast.cost.seconds for forecast in self.steps)

    @property
    def memory(self) -> int:
        """The forecast of the peak memory in bytes; 0 where every step is cached."""
        return max((forecast.cost.memory for forecast in self.steps), default=0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What may go wrong, takes longer than expected, or drifted from the recipe's lock."""
        return self.preview.notes

    def with_models(self) -> JobPlan:
        """Return the plan with its models on this machine: those that are not are downloaded at their commits."""
        return replace(self, preview=replace(self.preview, plan=resolve.with_model(self.plan)))

    def document(self) -> dict[str, Any]:
        """Return what `runner plan --json` prints."""
        return preview_report.document(self.preview)

    def __str__(self) -> str:
        """Return what `runner plan` prints, 100 columns wide."""
        return "\n".join(str(line).rstrip() for line in preview_report.lines(self.preview, 100))


def plan(
    recipe: Recipe,
    *,
    jobs: str | os.PathLike[str] | None = None,
    device: str = "auto",
    locked: bool = False,
    trust_remote_code: bool = False,
    offer: Offer | None = None,
) -> JobPlan:
    """Resolve a recipe, check it against its model, data and this machine, and forecast every step. Computes nothing.

    `jobs` is the folder of jobs and their store (default: `$RUNNER_JOBS`, or `jobs`), `device` is "auto", "cpu" or
    "cuda". Models and data are those that the recipe's lock pins, if it has one; `locked` requires the lock and that
    nothing drifted from it. `trust_remote_code` allows the code that a model brings to run; read it first. `offer` has
    the machines of a cluster that will compute, where it is not this one.

    Raises RecipeError with all complaints of the first stage that has any (model and data, then steps against the
    model); MachineError for a device or a package that is not there, too little memory, or too small a disk;
    UsageError for drift where `locked` forbids it, or a jobs folder that is a file.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"plan() takes a recipe, as `runner.load(path)` returns it; got {recipe!r}")
    remote_code.allow(trust_remote_code)
    root = jobs_folder(jobs)
    if root.exists() and not root.is_dir():
        raise UsageError(f"the jobs folder {root} is a file", "name another with --jobs")
    cache, locking = digest_cache(root), lock_file.use(recipe.file, strict=locked)
    resolved = resolve.resolve(recipe, cache_file=cache, device=device, commits=locking.commits, offer=offer)
    drifted = locking.check([resolved], cache)
    found = preview.preview(resolved, Store(root / "store"), _previous(root, recipe.name, recipe.matrix), offer)
    return JobPlan(replace(found, notes=(*drifted, *found.notes)), root, trust_remote_code)


def _previous(root: Path, recipe: str, matrix: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return step id → key inputs of the recipe's last job; they explain why a step runs again.

    A job of the same combination of the matrix is preferred to others.
    """
    latest, found = (False, ""), {}
    for path in sorted(root.glob("*/plan.json")):
        document = read_json(path)
        same = document.get("matrix", {}) == dict(matrix)
        started = (same, str(read_json(path.with_name("job.json")).get("started", "")))
        if document.get("recipe") == recipe and started >= latest:
            latest, found = started, {step["id"]: step["key_inputs"] for step in document.get("steps", [])}
    return found

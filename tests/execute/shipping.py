"""Plans whose steps other machines can run: the model is a folder that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.execute.application import Job, Manner, apply_all
from runner.execute.executor import Maker
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job.remote import Remote
from runner.plan import keys
from runner.plan.types import Plan
from tests.execute.applying import Kept
from tests.job.plans import plan

Steps = Sequence[Mapping[str, Any]]


def located(steps: Steps, folder: Path, name: str = "demo") -> Plan:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    config = model / "config.json"
    if not config.is_file():  # written again, it would be empty for a moment, for a machine that looks at it
        config.write_text("{}")
    made = plan(steps, name=name, model=model)
    renamed: dict[str, str] = {}
    keyed = []
    for step in made.steps:  # with the keys that a remote store checks
        inputs = {parameter: renamed.get(key, key) for parameter, key in step.key_inputs["inputs"].items()}
        key_inputs = {**step.key_inputs, "inputs": inputs}
        renamed[step.key] = keys.sha256(key_inputs)
        keyed.append(replace(step, key=renamed[step.key], key_inputs=key_inputs))
    return replace(made, steps=tuple(keyed))


def applied(
    plans: Sequence[Plan], jobs: Path, maker: Maker | None, remote: str | None = None, stopping: Stopping | None = None
) -> tuple[list[int | None], list[Kept]]:
    """Apply plans with an executor; their exit codes and events."""
    kept = [Kept() for _ in plans]
    settings = ApplySettings("again", threads=1, remote=Remote(remote) if remote else None)
    given = [Job(each, None, [sink]) for each, sink in zip(plans, kept, strict=True)]
    ends = apply_all(given, settings, jobs_root=jobs, stopping=stopping or Stopping(), manner=Manner(executor=maker))
    for end in ends:
        if end.error is not None:
            raise end.error
    return [end.code for end in ends], kept

"""A job as its records tell it, for every report: what each step did, what it cost, what came out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.errors import RunnerError
from runner.job import files, listing, records
from runner.job.directory import read_json
from runner.model import headers, hub
from runner.model.source import locate_model
from runner.progress import board
from runner.progress.events import Event
from runner.recipe.types import ModelSpec


@dataclass(frozen=True)
class StepReport:
    """`state`: "done", "cached", "failed", "stopped" or "pending", as of the job's last run.

    `seconds` and `memory` are those of the run that made the result, however long ago. `size` is the bytes of weights
    that came out, None for metrics. `errors` by layer, relative output errors, None where a layer has none.
    """

    id: str
    kind: str
    key: str
    folder: str
    state: str
    seconds: float | None
    memory: int | None
    resumed_at: int | None
    size: int | None
    metrics: Mapping[str, float]
    errors: tuple[float | None, ...]
    gates: tuple[Event, ...]
    failure: Event | None


@dataclass(frozen=True)
class JobReport:
    """`size_before` is the weights of the model, `size_after` those of the output; None where not known."""

    id: str
    path: Path
    recipe: str
    status: str
    exit_code: int | None
    started: str | None
    finished: str | None
    seconds: float | None
    memory: int | None
    model: str
    size_before: int | None
    size_after: int | None
    output: Path | None
    steps: tuple[StepReport, ...]

    def to_json(self) -> dict[str, Any]:
        document = asdict(self) | {"path": str(self.path), "output": str(self.output) if self.output else None}
        return {"schema": 1, **_finite(document)}


def read(root: Path, id: str) -> JobReport:
    """The report of the job that `id` names in the jobs folder `root` (see runner.job.listing.find)."""
    summary = listing.load(root, id)
    plan, state = read_json(summary.path / "plan.json"), read_json(summary.path / "job.json")
    last = board.replay(last_run(summary.path / "events.jsonl"))
    output = summary.path / "output"
    model = plan.get("model", {})
    steps = tuple(
        _step(summary.path, root, entry, last.steps.get(entry["index"], None)) for entry in plan.get("steps", [])
    )
    return JobReport(
        id=summary.id,
        path=summary.path,
        recipe=summary.recipe,
        status=summary.status,
        exit_code=summary.exit_code,
        started=summary.started,
        finished=summary.finished,
        seconds=summary.seconds,
        memory=state.get("memory"),
        model=str(model.get("source", "?")),
        size_before=_model_weights(model),
        size_after=weights(output) if output.is_dir() else None,
        output=output if output.is_dir() else None,
        steps=steps,
    )


def last_run(path: Path) -> list[Event]:
    """The events since the last job_started; lines that a killed run tore are left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    run: list[Event] = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or "event" not in event or "time" not in event:
            continue
        if event["event"] == "job_started":
            run = []
        run.append(event)
    return run


def weights(folder: Path) -> int:
    """Bytes of the safetensors files of a checkpoint."""
    return sum(path.stat().st_size for path in files.walk(folder) if path.suffix == ".safetensors")


def _model_weights(model: Mapping[str, Any]) -> int | None:
    """Bytes of the weights of the model that a plan names, where it still lies on this machine."""
    source, commit = str(model.get("source", "")), model.get("commit")
    if not commit and not source.startswith("demo:") and not Path(source).is_dir():
        return None  # the Hub is not asked
    try:
        folder = hub.cached_model(source, commit) if commit else locate_model(ModelSpec(source))[0]
        return headers.facts(folder, source).nbytes if folder is not None else None
    except (RunnerError, OSError):
        return None


def _step(job: Path, root: Path, entry: Mapping[str, Any], last: board.StepBoard | None) -> StepReport:
    record = _record(job / "steps" / entry["folder"]) or _record(root / "store" / entry["key"])
    if last is not None and last.state not in (board.RUNNING, board.WAITING):
        state = last.state
    elif last is not None:
        state = board.STOPPED
    else:
        state = board.PENDING
    if record is not None and state in (board.PENDING, board.STOPPED):
        state = board.CACHED
    sizes = [fact.size for fact in record.files if fact.path.endswith(".safetensors")] if record else []
    return StepReport(
        id=entry["id"],
        kind=entry["kind"],
        key=entry["key"],
        folder=entry["folder"],
        state=state,
        seconds=record.seconds if record else (last.seconds if last else None),
        memory=record.memory if record else None,
        resumed_at=record.resumed_at if record else None,
        size=sum(sizes) if sizes else None,
        metrics=dict(record.metrics) if record else dict(last.metrics) if last else {},
        errors=tuple(layer_errors(record.details)) if record else tuple(last.errors.values()) if last else (),
        gates=tuple(last.gates) if last else (),
        failure=last.failure if last else None,
    )


def _record(folder: Path) -> records.Record | None:
    try:
        return records.parse((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def layer_errors(details: Mapping[str, Any]) -> Iterable[float | None]:
    """The mean `error` over the modules of each layer, from a layer-wise step's details; nothing where none has one."""
    layers = details.get("layers")
    if not isinstance(layers, list):
        return []
    means: list[float | None] = []
    for layer in layers:
        modules = layer.get("modules", {}) if isinstance(layer, Mapping) else {}
        values = [m["error"] for m in modules.values() if isinstance(m, Mapping) and m.get("error") is not None]
        means.append(sum(values) / len(values) if values else None)
    return means if any(mean is not None for mean in means) else []


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value

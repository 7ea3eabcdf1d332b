"""Read a job's records for reports: what each step did, its cost, and the results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.contracts.sensitivity import Sensitivity
from runner.errors import RunnerError
from runner.job import files, listing, provenance, records
from runner.job.directory import read_json
from runner.model.architecture import inspect
from runner.model.source import gguf, hub
from runner.model.source.locate import locate_model
from runner.plan.types import MODEL
from runner.progress import board
from runner.progress.events import Event
from runner.recipe.types import ModelSpec
from runner.report import assigned_bits, delicate
from runner.report.step_details import Curve, Layer, curve, layer_errors, layers


@dataclass(frozen=True)
class Forecast:
    """The forecast of a step: peak memory in bytes, and seconds."""

    memory: int
    seconds: float


_WAY = ("params", "data", "tasks")  # of key_inputs: what decides how a step measures


@dataclass(frozen=True)
class StepReport:
    """`state`: "done", "cached", "failed", "stopped" or "pending", as of the job's last run.

    `seconds` and `memory` are those of the run that computed the result, which may be an earlier one. `size` is the
    bytes of the weights that it made, None for metrics; `size_before` those of its input. `errors` are relative output
    errors by layer, None where a layer has none. `input` is the source of its checkpoint: "model" or the id of a step.
    `measures` identifies how it measures: metrics of steps with equal ones may be compared,
    `way` does so among jobs, by what names stand for. `forecast` is that of the
    run that computed it. `tensors` is its account of tensors. `messages` are warnings of the last run.
    `sensitivity` is what it measured of groups of modules, `assignment` the bits that it assigned them.
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
    input: str = MODEL
    produces: str = ""
    digest: str | None = None
    measures: str = ""
    way: str = ""
    size_before: int | None = None
    forecast: Forecast | None = None
    layers: tuple[Layer, ...] = ()
    curve: Curve | None = None
    tensors: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    sensitivity: Sensitivity | None = None
    assignment: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class JobReport:
    """`size_before` is the weights of the model, `size_after` those of the output; None where not known.

    `environment` is environment.json, empty where nothing was computed yet; `text` is recipe.yaml; `key` and `lock`
    name the plan, the model and the data; `matrix` has the values of its combination; `resume` is the command to
    continue with after an interruption. `provenance`: the in-toto statement exists; `signature` is the file that signs
    it.
    """

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
    key: str = ""
    text: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    lock: Mapping[str, Any] = field(default_factory=dict)
    matrix: Mapping[str, Any] = field(default_factory=dict)
    resume: str | None = None
    messages: tuple[str, ...] = ()
    provenance: bool = False
    signature: str | None = None


def read(root: Path, id: str) -> JobReport:
    """Read the report of the job that `id` names in the jobs folder `root` (see runner.job.listing.find)."""
    summary = listing.load(root, id)
    plan, state = read_json(summary.path / "plan.json"), read_json(summary.path / "job.json")
    runs = events(summary.path / "events.jsonl")
    run = last_run(runs)
    last = board.replay(run)
    output = summary.path / "output"
    model = plan.get("model", {})
    before = _model_weights(model)
    steps: list[StepReport] = []
    for entry in plan.get("steps", []):
        sizes = {MODEL: before, **{step.id: step.size for step in steps}}
        made = _step(summary.path, root, entry, last.steps.get(entry["index"], None))
        made = replace(made, forecast=forecast(runs, entry["index"]), messages=warnings(run, entry["index"]))
        steps.append(replace(made, size_before=sizes.get(made.input)))
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
        size_before=before,
        size_after=weights(output) if output.is_dir() else None,
        output=output if output.is_dir() else None,
        steps=tuple(steps),
        key=str(plan.get("key", "")),
        text=_text(summary.path / "recipe.yaml"),
        environment=read_json(summary.path / "environment.json") or _environment(summary.path, plan),
        lock={"model": model, "data": plan.get("data", {})},
        matrix=summary.matrix,
        resume=last.resume or (str(state.get("command") or "") or None if summary.status == "interrupted" else None),
        messages=warnings(run, None),
        provenance=(summary.path / provenance.NAME).is_file(),
        signature=provenance.signature(summary.path),
    )


def events(path: Path) -> list[Event]:
    """Read every event of every run; lines that a killed run left unfinished are skipped."""
    found: list[Event] = []
    for line in _text(path).split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event and "time" in event:
            found.append(event)
    return found


def last_run(events: Sequence[Event]) -> list[Event]:
    """Return the events since the last job_started."""
    begin = max((number for number, event in enumerate(events) if event["event"] == "job_started"), default=0)
    return list(events[begin:])


def forecast(events: Iterable[Event], index: int) -> Forecast | None:
    """Return the last forecast of a step that was to be computed."""
    found = None
    for event in events:
        for step in event.get("steps", ()) if event["event"] == "job_started" else ():
            if step.get("index") == index and step.get("forecast"):
                found = Forecast(step["forecast"]["memory"], step["forecast"]["seconds"])
    return found


def warnings(events: Iterable[Event], index: int | None) -> tuple[str, ...]:
    """Return the warnings about a step; those about the job where `index` is None."""
    found = (e for e in events if e["event"] == "message" and e.get("level") == "warning" and e.get("step") == index)
    return tuple(dict.fromkeys(str(event["text"]) for event in found))


def _environment(job: Path, plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the environment of the last step's record: a job that found everything in the store has no own one."""
    made = (_record(job / "steps" / entry["folder"]) for entry in reversed(plan.get("steps", [])))
    return next((record.environment for record in made if record is not None), {})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def weights(folder: Path) -> int:
    """Return the bytes of the files with weights of a checkpoint or an engine."""
    return sum(path.stat().st_size for path in files.walk(folder) if path.suffix in records.WEIGHTS)


def _model_weights(model: Mapping[str, Any]) -> int | None:
    """Return the bytes of the weights of a plan's model; None where it is not on this machine."""
    source, commit = str(model.get("source", "")), model.get("commit")
    if not commit and gguf.is_gguf(Path(source)) and Path(source).is_file():
        return Path(source).stat().st_size
    if not commit and not source.startswith("demo:") and not Path(source).is_dir():
        return None  # the Hub is not queried
    try:
        folder = hub.cached_model(source, commit) if commit else locate_model(ModelSpec(source))[0]
        return inspect.facts(folder, source).nbytes if folder is not None else None
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
    return StepReport(
        id=entry["id"],
        kind=entry["kind"],
        key=entry["key"],
        folder=entry["folder"],
        state=state,
        seconds=record.seconds if record else (last.seconds if last else None),
        memory=record.memory if record else None,
        resumed_at=record.resumed_at if record else None,
        size=records.weight_bytes(record) if record else None,
        metrics=dict(record.metrics) if record else dict(last.metrics) if last else {},
        errors=tuple(layer_errors(record.details)) if record else tuple(last.errors.values()) if last else (),
        gates=tuple(last.gates) if last else (),
        failure=last.failure if last else None,
        input=str(entry.get("inputs", {}).get("checkpoint", MODEL)),
        produces=record.artifact_type if record else str(entry.get("produces", "")),
        digest=record.digest if record else None,
        measures=files.canonical([entry["kind"], entry.get("params", {}), entry.get("data", {})]),
        way=files.canonical([entry["kind"], *(entry.get("key_inputs", {}).get(name) for name in _WAY)]),
        layers=layers(record.details) if record else (),
        curve=curve(record.details) if record else None,
        tensors=_account(record),
        sensitivity=delicate.parse(record.details) if record else None,
        assignment=assigned_bits.parse(record.details) if record else None,
    )


def _account(record: records.Record | None) -> Mapping[str, Any]:
    """Return the account of tensors of a step that made a checkpoint (`Account.document`); {} for any other."""
    found = record.details.get("tensors") if record else None
    return found if isinstance(found, Mapping) and isinstance(found.get("roles"), Mapping) else {}


def _record(folder: Path) -> records.Record | None:
    try:
        return records.parse((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

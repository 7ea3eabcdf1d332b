"""The messages between parent and worker: JSON, one object a line.

Parent → worker, on its stdin:

    {"run": {...Request}}     run a step
    {"stop": true}            stop at the next safe point
    end of file               the parent ended or closed it: the worker exits at once

Worker → parent, on the descriptor that RUNNER_EVENTS_FD names: events of runner.progress.events, each with "step". A
request ends with exactly one of step_finished, step_cached (another process committed it meanwhile), step_failed and
interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from runner.contracts.lineage import AppliedStep, Lineage
from runner.contracts.model_description import Linears

EVENTS_FD = "RUNNER_EVENTS_FD"
PARENT = "RUNNER_PARENT"  # the parent's process id: a worker that finds another parent exits
LAST = frozenset({"step_finished", "step_cached", "step_failed", "interrupted"})


@dataclass(frozen=True)
class InputRef:
    """An input artifact: its folder, type, digest and lineage, and its sites and linear modules in the plan."""

    path: str
    type: str
    digest: str
    lineage: Lineage
    sites: tuple[str, ...] | None = None
    linears: Linears | None = None


@dataclass(frozen=True)
class DataRef:
    """A data entry: the fields of its DataSpec, the files on this machine, and the facts that DataFacts needs."""

    spec: Mapping[str, Any]
    files: tuple[str, ...]
    digest: str
    bytes: int


@dataclass(frozen=True)
class Request:
    """One step to run. `store` is absolute, `tokenizer` the folder of the source model; `command` resumes the job.

    `step` is the step for model cards: its parameters without secrets.
    """

    index: int
    id: str
    kind: str
    kind_version: int
    key: str
    key_inputs: Mapping[str, Any]
    params: Mapping[str, Any]
    step: AppliedStep
    seed: int
    device: str
    threads: int
    store: str
    recipe: str
    recipe_text: str
    inputs: Mapping[str, InputRef]
    data: Mapping[str, DataRef]
    produces: str
    tokenizer: str
    command: str
    processes: int = 1
    environment: Mapping[str, Any] | None = None  # of a foreign tool: runner.plan.environments.Environment.document
    account: Mapping[str, Any] | None = None  # the account of tensors of its input, for the record
    written: Mapping[str, tuple[int, ...] | None] | None = None  # the shapes of the tensors that it must write
    unchanged: tuple[str, ...] = ()  # tensors of its input that it must copy
    limits: Mapping[str, float] = field(default_factory=dict)  # gates with a fixed upper limit: metric → limit
    tasks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # parameter → entry as written → its path


def encode_run(request: Request) -> bytes:
    return _line({"run": {part.name: getattr(request, part.name) for part in fields(request)}})


def encode_stop() -> bytes:
    return _line({"stop": True})


def decode(line: bytes) -> Request | None:
    """Parse a line of the worker's stdin: a request, or None for a stop."""
    message = json.loads(line)
    if message.get("stop"):
        return None
    run = message["run"]
    run["inputs"] = {name: _input(ref) for name, ref in run["inputs"].items()}
    run["unchanged"] = tuple(run["unchanged"])
    run["step"] = AppliedStep(**run["step"])
    run["data"] = {name: DataRef(**{**ref, "files": tuple(ref["files"])}) for name, ref in run["data"].items()}
    return Request(**run)


def _input(ref: Mapping[str, Any]) -> InputRef:
    linears = None if ref["linears"] is None else Linears.from_json(ref["linears"])
    lineage = Lineage.from_json(ref["lineage"])
    return InputRef(**{**ref, "lineage": lineage, "sites": _tuple(ref["sites"]), "linears": linears})


def _tuple(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Convert read-only mappings and dataclasses for JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")

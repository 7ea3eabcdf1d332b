"""The current state of a job and its steps, computed from its events.

The sinks that draw and the reports read it; it is a sink itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from runner.progress import units
from runner.progress.events import Event

WAITING, PENDING, RUNNING, CACHED, DONE, FAILED, STOPPED = (
    "waiting", "pending", "running", "cached", "done", "failed", "stopped"
)  # fmt: skip


@dataclass
class Phase:
    """The latest `progress` event of a step."""

    name: str
    done: float
    total: float | None
    unit: str


@dataclass
class Training:
    """The training of a step, at optimizer step `at` of `of`. `losses` are those of its `train` events, in order."""

    at: int
    of: int
    losses: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    reported_at: float | None = None

    def remaining(self, now: float) -> float | None:
        """Return the seconds until the last step ends, at the current rate; None while unknown."""
        if self.seconds_left is None or self.reported_at is None:
            return None
        return max(0.0, self.seconds_left - (now - self.reported_at))


@dataclass
class StepBoard:
    """One step. `errors` maps a layer (counted from 1) to its relative output error; `times` to its seconds."""

    index: int
    id: str
    kind: str
    state: str = PENDING
    planned: str = ""
    started: float | None = None
    seconds: float | None = None
    layer: int = 0
    layers: int | None = None
    layer_ended: float | None = None
    resumed_at: int | None = None
    errors: dict[int, float] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    memory: float = 0
    phase: Phase | None = None
    training: Training | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    gates: list[Event] = field(default_factory=list)
    holder: str = ""
    failure: Event | None = None

    @property
    def missed(self) -> bool:
        """Whether a quality gate of this step was missed, other than one that only warns."""
        return any(is_missed(gate) for gate in self.gates)

    def seconds_per_layer(self) -> float | None:
        """Return the mean over the last eight layers; None before the first one ended."""
        recent = list(self.times.values())[-8:]
        return sum(recent) / len(recent) if recent else None

    def remaining(self, now: float) -> float | None:
        """Return the seconds until the last layer ends, at the current rate; None while unknown."""
        rate = self.seconds_per_layer()
        if rate is None or not self.layers:
            return None
        since = now - self.layer_ended if self.layer_ended is not None else 0.0
        return max(0.0, rate * (self.layers - self.layer) - since)


@dataclass
class Board:
    """A job. Unknown events and events of unknown steps are ignored, as a newer worker may send them."""

    job: str = ""
    name: str = ""
    directory: str = ""
    started: float | None = None
    seconds: float | None = None
    memory: float = 0
    exit_code: int | None = None
    output: str | None = None
    resume: str | None = None
    holder: str = ""
    steps: dict[int, StepBoard] = field(default_factory=dict)

    def send(self, event: Event) -> None:
        """Update the state with one event."""
        if self.started is None:
            self.started = event.get("time")
        handler = getattr(self, f"_on_{event.get('event')}", None)
        if handler is not None:
            handler(event)

    def close(self) -> None:
        """Do nothing; with `send` it makes a board a sink."""

    def step_of(self, event: Event) -> StepBoard | None:
        """Return the step of an event; it is added where it is new and the event has its kind."""
        index = event.get("step")
        if index is None:
            return None
        if index not in self.steps and "kind" in event:
            self.steps[index] = StepBoard(index, str(event.get("id", event["kind"])), event["kind"])
        return self.steps.get(index)

    def position(self, step: StepBoard) -> int:
        """Return the step's place in the job, counted from 1."""
        return 1 + sorted(self.steps).index(step.index)

    def _on_job_started(self, event: Event) -> None:
        self.job, self.name, self.directory = event["job"], event.get("name", ""), event.get("directory", "")
        self.started, self.holder = event["time"], ""
        for entry in event.get("steps", ()):
            step = StepBoard(entry["index"], entry["id"], entry["kind"], planned=entry.get("state", ""))
            self.steps[step.index] = step

    def _on_step_started(self, event: Event) -> None:
        if step := self.step_of(event):
            step.state, step.started = RUNNING, event["time"]
            step.layers, step.resumed_at = event.get("layers"), event.get("resumed_at")
            step.layer = step.resumed_at or 0
            step.layer_ended = event["time"]
            if event.get("unit") == "step" and step.layers:
                step.training = Training(step.layer, step.layers)
                step.layer, step.layers = 0, None

    def _on_step_cached(self, event: Event) -> None:
        if step := self.step_of(event):
            step.state = CACHED
            step.metrics.update(event.get("metrics") or {})

    def _on_waiting(self, event: Event) -> None:
        if step := self.step_of(event):
            step.state, step.holder = WAITING, str(event.get("holder", ""))
        else:
            self.holder = str(event.get("holder", ""))

    def _on_layer(self, event: Event) -> None:
        if step := self.step_of(event):
            layer = event["layer"]
            step.layer, step.layers, step.layer_ended, step.phase = layer, event["layers"], event["time"], None
            step.times[layer] = event.get("seconds") or 0.0
            if (error := event.get("error")) is not None:
                step.errors[layer] = error
            self._memory(step, event)

    def _on_train(self, event: Event) -> None:
        if step := self.step_of(event):
            training = step.training = step.training or Training(0, event["of"])
            training.at, training.of, training.reported_at = event["at"], event["of"], event["time"]
            step.phase = None
            training.losses.append(event["loss"])
            training.learning_rate = event.get("learning_rate")
            training.tokens_per_second = event.get("tokens_per_second")
            training.seconds_left = event.get("seconds_left")
            if (loss := event.get("evaluation")) is not None:
                training.evaluations.append(loss)
            self._memory(step, event)

    def _on_progress(self, event: Event) -> None:
        if step := self.step_of(event):
            step.phase = Phase(event.get("phase", ""), event.get("done", 0), event.get("total"), event.get("unit", ""))

    def _on_metric(self, event: Event) -> None:
        if step := self.step_of(event):
            step.metrics[event["name"]] = event["value"]

    def _on_step_finished(self, event: Event) -> None:
        if step := self.step_of(event):
            step.state, step.seconds, step.phase = DONE, event.get("seconds"), None
            step.metrics.update(event.get("metrics") or {})
            self._memory(step, event)

    def _on_step_failed(self, event: Event) -> None:
        if step := self.step_of(event):
            step.state, step.failure, step.phase = FAILED, event, None
            step.seconds = event["time"] - step.started if step.started else None

    def _on_gate(self, event: Event) -> None:
        if step := self.step_of(event):
            step.gates.append(event)

    def _on_interrupted(self, event: Event) -> None:
        self.resume = event.get("resume") or self.resume
        for step in self.steps.values():
            if step.state in (RUNNING, WAITING):
                step.state, step.phase = STOPPED, None
                step.seconds = event["time"] - step.started if step.started else None

    def _on_job_finished(self, event: Event) -> None:
        self.exit_code, self.seconds, self.output = event["exit_code"], event.get("seconds"), event.get("output")
        self.memory = max(self.memory, event.get("memory") or 0)
        for step in self.steps.values():
            if step.state in (RUNNING, WAITING):
                step.state, step.phase = STOPPED, None

    def _memory(self, step: StepBoard, event: Event) -> None:
        step.memory = max(step.memory, event.get("memory") or 0)
        self.memory = max(self.memory, step.memory)


def replay(events: Iterable[Event]) -> Board:
    """Return the board after these events."""
    board = Board()
    for event in events:
        board.send(event)
    return board


def figure(value: float | None) -> str:
    """Format an error or a loss in three digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def failure_lines(event: Event) -> list[str]:
    """Return a step_failed event as lines: the error, the remedy, the path of the log."""
    help, log = event.get("help"), event.get("log")
    lines = [str(event["error"])]
    lines += [f"help: {help}"] if help else []
    return lines + ([f"log: {log}"] if log and str(log) not in str(help) else [])


def is_missed(gate: Event) -> bool:
    """Return whether a gate was missed, other than one that only warns."""
    return not gate.get("passed") and gate.get("on_miss") != "warn"


def gate_level(gate: Event) -> str:
    """Return the level of a gate's verdict: "good" where it passed, "warn" where it only warns, else "bad"."""
    return "good" if gate.get("passed") else "bad" if is_missed(gate) else "warn"


def gate_word(gate: Event) -> str:
    """Return "passed", "missed" or "undecided"; with "(only a warning)" where a gate that was not passed only warns."""
    word = "passed" if gate.get("passed") else "undecided" if gate.get("undecided") else "missed"
    return word if gate.get("passed") or is_missed(gate) else f"{word} (only a warning)"


def gate_text(event: Event) -> str:
    """Return `gate passed: perplexity 15.52 (at most 19.2)`; for a missed gate, also by how much."""
    verdict = f"gate {gate_word(event)}: "
    if event.get("text"):
        return verdict + str(event["text"])
    metric, value, limit = event["metric"], event["value"], event["limit"]
    rule = event.get("rule") or f"limit {units.number(limit)}"
    gap = "" if event["passed"] else f", off by {units.number(abs(value - limit))}"
    return f"{verdict}{metric} {units.number(value)} ({rule}){gap}"


def reason(board: Board) -> str:
    """Describe the first gate that was missed or step that failed; "" where there is none."""
    for step in board.steps.values():
        if step.failure is not None:
            return f"{step.id}: {str(step.failure['error']).splitlines()[0]}"
        for gate in step.gates:
            if is_missed(gate):
                return f"{step.id}: {gate_text(gate)}"
    return ""

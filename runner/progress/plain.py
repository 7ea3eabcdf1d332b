"""The sink for logs: one readable line per fact, no control characters, and few enough lines for a CI log.

State, metrics, gates, messages and failures always show. Layers and steps of a training show when ten seconds or a
tenth of the step have passed since the last line about it.
"""

from __future__ import annotations

from typing import TextIO

from runner.errors import visible
from runner.progress import board, units
from runner.progress.events import Event

LONGEST_SILENCE = 10.0
SHORTEST_PAUSE = 1.0


class Plain:
    """Writes lines to `stream`. A closed stream stops the output, never the job.

    `job` begins every line, where several jobs run at once.
    """

    def __init__(self, stream: TextIO, job: str = "") -> None:
        self._stream: TextIO | None = stream
        self._job = f"{job} " if job else ""
        self._board = board.Board()
        self._last_line = 0.0
        self._last_layer = 0
        self._printed_metrics: set[tuple[int, str]] = set()

    def send(self, event: Event) -> None:
        self._board.send(event)
        for line in self._lines(event):
            self._write(event["time"], line)

    def close(self) -> None:
        self._stream = None

    def _write(self, time: float, line: str) -> None:
        if self._stream is None:
            return
        elapsed = max(0.0, time - (self._board.started or time))
        try:
            self._stream.write(f"[{units.clock(elapsed):>5}] {visible(self._job + line)}\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def _lines(self, event: Event) -> list[str]:
        name, step = event["event"], self._board.step_of(event)
        if name == "job_started":
            return [f"{event['job']}: {units.plural(len(self._board.steps), 'step')} in {event['directory']}"]
        if name == "job_finished":
            return [_ending(self._board)]
        if name == "interrupted":
            where = f"{self._label(step)} stopped" if step else "stopped"
            return [f"{where} at a safe point; continue with: {event.get('resume', 'the same command')}"]
        if name == "waiting" and step is None:
            return [f"waits for {event.get('holder')}"]
        if name == "message":
            level = "" if event.get("level") == "info" else f"{event.get('level')}: "
            return [f"{self._label(step) + ' ' if step else ''}{level}{event['text']}"]
        return self._step_lines(event, step) if step else []

    def _step_lines(self, event: Event, step: board.StepBoard) -> list[str]:
        label, name = self._label(step), event["event"]
        if name == "step_started":
            self._last_line, self._last_layer = event["time"], _done(step)
            unit, total = event.get("unit", "layer"), event.get("layers")
            resumed = f", resumed after {unit} {step.resumed_at}/{total}" if step.resumed_at else ""
            return [f"{label} {step.kind} started{resumed}"]
        if name == "step_cached":
            known = units.metrics(step.metrics.items())
            return [f"{label} {step.kind} cached{': ' + known if known else ''}"]
        if name == "waiting":
            return [f"{label} waits for {step.holder}"]
        if name == "metric":
            self._printed_metrics.add((step.index, event["name"]))
            return [f"{label} {event['name']} {units.number(event['value'])}"]
        if name == "step_finished":
            memory = f", peak memory {units.size(step.memory)}" if step.memory else ""
            printed = self._printed_metrics
            new = [(n, v) for n, v in units.shown(step.metrics.items()) if (step.index, n) not in printed]
            lines = [f"{label} {units.metrics(new)}"] if new else []
            return [*lines, f"{label} finished in {units.duration(step.seconds or 0)}{memory}"]
        if name == "step_failed":
            error, *rest = board.failure_lines(event)
            return [f"{label} failed: {error}", *(f"{label} {line}" for line in rest)]
        if name == "gate":
            return [f"{label} {board.gate_text(event)}"]
        if name in ("layer", "train", "progress") and self._due(event, step):
            self._last_line, self._last_layer = event["time"], _done(step)
            if name == "train":
                return [f"{label} {_training_text(step, event)}"]
            return [f"{label} {_layer_text(step, event) if name == 'layer' else _phase_text(step)}"]
        return []

    def _due(self, event: Event, step: board.StepBoard) -> bool:
        silence = event["time"] - self._last_line
        total = step.training.of if step.training else step.layers or 1
        tenth = (_done(step) - self._last_layer) * 10 >= total
        counted = event["event"] in ("layer", "train")
        return silence >= LONGEST_SILENCE or (counted and tenth and silence >= SHORTEST_PAUSE)

    def _label(self, step: board.StepBoard) -> str:
        return f"{self._board.position(step)}/{len(self._board.steps)} {step.id}:"


def _done(step: board.StepBoard) -> int:
    """Return the number of finished layers, or optimizer steps."""
    return step.training.at if step.training else step.layer


def _training_text(step: board.StepBoard, event: Event) -> str:
    training = step.training
    if training is None:
        return ""
    parts = [f"step {training.at}/{training.of}", f"loss {board.figure(event['loss'])}"]
    if event.get("evaluation") is not None:
        parts.append(f"evaluation {board.figure(event['evaluation'])}")
    if training.learning_rate is not None:
        parts.append(f"learning rate {board.figure(training.learning_rate)}")
    if training.tokens_per_second:
        parts.append(f"{units.count(training.tokens_per_second)} tokens/s")
    if left := training.remaining(event["time"]):
        parts.append(f"{units.duration(left)} left")
    if step.memory:
        parts.append(units.size(step.memory))
    return ", ".join(parts)


def _layer_text(step: board.StepBoard, event: Event) -> str:
    parts = [f"layer {step.layer}/{step.layers}"]
    rate, left = step.seconds_per_layer(), step.remaining(event["time"])
    if rate is not None:
        parts.append(units.rate(rate))
    if left:
        parts.append(f"{units.duration(left)} left")
    if event.get("error") is not None:
        parts.append(f"error {board.figure(event['error'])}")
    if step.memory:
        parts.append(units.size(step.memory))
    return ", ".join(parts)


def _phase_text(step: board.StepBoard) -> str:
    phase = step.phase
    if phase is None:
        return ""
    layer = f"layer {step.layer + 1}/{step.layers}, " if step.layers and step.layer < step.layers else ""
    total = f"/{units.number(phase.total)}" if phase.total else ""
    return f"{layer}{phase.name} {units.number(phase.done)}{total} {phase.unit}".rstrip()


def _ending(job: board.Board) -> str:
    endings = {0: "done", 1: "failed", 3: "a quality gate was missed", 4: "failed", 75: "interrupted", 130: "killed"}
    memory = f", peak memory {units.size(job.memory)}" if job.memory else ""
    how = endings.get(job.exit_code or 0, f"stopped with exit code {job.exit_code}")
    return f"{how} after {units.duration(job.seconds or 0)}{memory}"

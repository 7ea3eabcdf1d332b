"""Events: what happens in a job, the one source for the terminal, events.jsonl, CI and tests.

An event is a flat JSON object with `event` (its name), `time` (seconds since the epoch, wall clock) and the fields
below. Steps emit `layer`, `train`, `progress`, `metric` and `message`; the worker and the executor emit the rest.

    job_started     job, name, directory, steps: [{index, id, kind, state, forecast: {memory, seconds}}]; no forecast
                    for a step that is cached
    step_started    step (index), id, kind, key, resumed_at (layers finished before, or null), layers (or null),
                    unit (what is counted: "layer", or "step" of a training)
    step_cached     step, id, kind, key, metrics
    waiting         step, holder (who holds the lock, as text)
    layer           step, layer (finished, counted from 1), layers, seconds, error (relative output error or null),
                    memory (peak resident bytes so far), error_before (the error before a step that compensates for one)
    train           step, at (optimizer steps done), of (the number of steps), loss, learning_rate,
                    tokens_per_second (or null), seconds_left (or null), memory (peak bytes so far, of all processes),
                    evaluation (loss on the evaluation text, measured after this step, or null), parts (further losses)
    progress        step, phase (text), done, total, unit
    metric          step, name, value
    message         step (or null), level ("info", "warning"), text
    step_finished   step, id, kind, key, digest, seconds, memory, metrics
    step_failed     step, id, kind, error (text), help (or null), exit_code, log (path or null)
    gate            step, id, metric, value, limit, rule (text), passed, text, on_miss ("stop", "continue", "warn"),
                    undecided, low, high (the bounds of its interval, null without a confidence)
    interrupted     step (or null), resume (the command to continue with)
    job_finished    job, directory, exit_code, seconds, memory, output (path or null)
    summary         jobs: [{name, file, job, directory, verdict, exit_code, seconds, run, cached, text}], exit_code:
                    sent at the end of an apply of several jobs; in no events.jsonl
    search_finished search, status, exit_code, trials (how many), winner (number or null), job, values: of the winner;
                    sent at the end of a search; in no events.jsonl

Where several jobs run at once, `--progress jsonl` adds `job` to every event; a step is then known by job and index.
"""

from __future__ import annotations

import json
import time
from typing import Any, Protocol

Event = dict[str, Any]

NAMES = frozenset({
    "job_started", "step_started", "step_cached", "waiting", "layer", "train", "progress", "metric", "message",
    "step_finished", "step_failed", "gate", "interrupted", "job_finished", "summary",
    "search_finished",
})  # fmt: skip


class Sink(Protocol):
    """A receiver of events, which shows or stores them."""

    def send(self, event: Event) -> None: ...
    def close(self) -> None: ...


def make(event: str, **fields: Any) -> Event:
    """Make an event with the current time. ValueError for an unknown name, which is a programming error."""
    if event not in NAMES:
        raise ValueError(f"unknown event {event!r}")
    return {"event": event, "time": round(time.time(), 3), **fields}


def encode(event: Event) -> str:
    """Return an event as one line of JSON, without the newline."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=True)

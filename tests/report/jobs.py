"""Job directories with records of every sort, made by hand: no worker, no model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.job import environment
from runner.job.directory import JobDirectory, JobState
from runner.job.records import Record
from runner.job.store import Store
from runner.plan.types import Plan
from runner.progress.events import Event
from runner.report import job_report
from runner.report.job_report import JobReport
from tests.job.plans import plan

STEPS: list[dict[str, Any]] = [
    {"id": "baseline", "kind": "evaluate.perplexity", "produces": "metrics"},
    {"id": "prune", "kind": "prune.wanda"},
    {"id": "distill", "kind": "distill.logits"},
    {"id": "gptq", "kind": "quantize.gptq", "produces": "quantized-checkpoint"},
    {"id": "quality", "kind": "evaluate.perplexity", "produces": "metrics"},
]
NAMES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
LAYERS = [
    {
        "layer": layer,
        "modules": {
            f"model.layers.{layer}.{name}": {
                "bits": 4,
                "error": 0.001 * (layer + 1) * (place + 1),
                "error_before": 0.02,
            }
            for place, name in enumerate(NAMES)
        },
    }
    for layer in range(4)
]
DETAILS: dict[str, dict[str, Any]] = {
    "prune": {"layers": [{"layer": 0, "modules": {"model.layers.0.mlp.down_proj": {"sparsity": 0.5}}}]},
    "distill": {
        "curve": [{"step": step, "loss": 3.0 - step / 50, "learning_rate": 1e-4} for step in range(1, 41)],
        "evaluations": [{"step": 20, "loss": 2.9}, {"step": 40, "loss": 2.5}],
        "kept": 40,
    },
    "gptq": {"layers": LAYERS},
}
METRICS: dict[str, dict[str, float]] = {
    "baseline": {"perplexity": 10.0, "loss": 2.3, "tokens": 2048},
    "prune": {"sparsity": 0.5},
    "distill": {"loss": 2.5},
    "gptq": {"error": 0.0035},
    "quality": {"perplexity": 11.0, "loss": 2.4, "tokens": 2048},
}
SIZES = {"prune": 4000, "distill": 4000, "gptq": 1000}


def gate(step: int, id: str, value: float, limit: float, metric: str = "perplexity") -> Event:
    passed = value <= limit
    said = f"`{metric}` is {value:g}, " + ("within" if passed else f"{value - limit:g} above") + f" its limit {limit:g}"
    return {
        "event": "gate", "time": 3, "step": step, "id": id, "metric": metric, "value": value, "limit": limit,
        "rule": f"at most {limit:g}", "passed": passed, "text": said,
    }  # fmt: skip


def made(
    root: Path, status: str = "done", *, steps: Sequence[Mapping[str, Any]] = STEPS, done: int | None = None,
    events: Sequence[Event] = (), name: str = "demo", metrics: Mapping[str, Mapping[str, float]] | None = None,
    details: Mapping[str, Mapping[str, Any]] | None = None, recipe: str | None = None, size: int | None = None,
) -> Plan:  # fmt: skip
    """A job whose first `done` steps are committed and linked, with `events` of its last run; the plan."""
    planned = plan(steps, name)
    store, directory = Store(root / "store"), JobDirectory.create(root, planned)
    store.prepare()
    facts = environment.facts("cpu", 2)
    entry = None
    for step in planned.steps[: len(planned.steps) if done is None else done]:
        stage = store.stage(step.key)
        if step.produces != "metrics":
            (stage.out / "model.safetensors").write_bytes(b"0" * (size or SIZES.get(step.id, 4000)))
        record = Record(
            key=step.key, key_inputs=step.key_inputs, kind=step.kind, kind_version=1, id=step.id, recipe=name,
            seconds=2.0, memory=500_000_000, metrics=(metrics or METRICS).get(step.id, {}),
            details=(DETAILS if details is None else details).get(step.id, {}), artifact_type=step.produces, inputs={},
            environment=facts,
        )  # fmt: skip
        committed = store.commit(stage, record)
        directory.link_step(step, committed)
        entry = committed if step.produces != "metrics" else entry
    if status in ("done", "gate-missed") and entry is not None:
        directory.set_output(entry)
    directory.write_environment(planned, facts)
    codes = {"done": 0, "failed": 1, "gate-missed": 3, "interrupted": 75, "running": None}
    directory.write_state(
        JobState(
            status, codes[status], "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z", 9.0, 500_000_000,
            "runner apply demo.yaml", os.getpid(),
        )
    )  # fmt: skip
    listed = [{"index": s.index, "id": s.id, "kind": s.kind, "state": "run"} for s in planned.steps]
    listed[0]["forecast"] = {"memory": 600_000_000, "seconds": 5.0}
    run: list[Event] = [{"event": "job_started", "time": 1, "job": planned.job_id, "steps": listed}]
    run += [
        {
            "event": "step_finished",
            "time": 2,
            "step": s.index,
            "id": s.id,
            "kind": s.kind,
            "seconds": 2.0,
            "metrics": {},
        }
        for s in planned.steps[: len(planned.steps) if done is None else done]
    ]
    text = "".join(json.dumps(event) + "\n" for event in [*run, *events])
    (directory.path / "events.jsonl").write_text(text, encoding="utf-8")
    if recipe is not None:
        (directory.path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return planned


def showcase(root: Path) -> JobReport:
    """A job with made-up numbers, of the size of real ones: the one that pictures of reports show."""
    names = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    layers = []
    for layer in range(16):
        errors = [0.0012 * (1 + place / 3) * (1 + 0.5 * math.cos(layer / 2.5) ** 2) for place in range(7)]
        errors[6] *= 3 if layer == 1 else 1
        modules = {f"model.layers.{layer}.{n}": {"bits": 4, "error": e} for n, e in zip(names, errors, strict=True)}
        layers.append({"layer": layer, "modules": modules})
    curve = [
        {
            "step": step,
            "loss": 2.2 + 0.9 * math.exp(-step / 45) + 0.03 * math.sin(step * 1.7),
            "learning_rate": 2e-4 * (1 - step / 240),
        }
        for step in range(2, 201, 2)
    ]
    evaluations = [{"step": step, "loss": 2.25 + 0.85 * math.exp(-step / 45)} for step in range(40, 201, 40)]
    steps = [
        {"id": "baseline", "kind": "evaluate.perplexity", "produces": "metrics"},
        {"id": "prune", "kind": "prune.wanda"},
        {"id": "pruned", "kind": "evaluate.perplexity", "produces": "metrics"},
        {"id": "recover", "kind": "recover.lora"},
        {"id": "gptq", "kind": "quantize.gptq", "produces": "quantized-checkpoint"},
        {"id": "quality", "kind": "evaluate.perplexity", "produces": "metrics"},
    ]
    metrics = {
        "baseline": {"perplexity": 9.7512}, "prune": {"sparsity": 0.2}, "pruned": {"perplexity": 10.0931},
        "recover": {"loss": 2.2141}, "gptq": {"error": 0.0031}, "quality": {"perplexity": 10.1276},
    }  # fmt: skip
    details: dict[str, dict[str, Any]] = {
        "gptq": {"layers": layers},
        "recover": {"curve": curve, "evaluations": evaluations, "kept": 200},
    }
    name = "example-int4"
    plan = made(
        root, steps=steps, name=name, metrics=metrics, details=details, events=[gate(5, "quality", 10.1276, 10.7263)]
    )
    report = job_report.read(root, plan.job_id)
    whole, small = 2_471_645_608, 812_301_440
    sizes = {"prune": whole, "recover": whole, "gptq": small}
    costs = {"prune": 96.2, "recover": 1824.6, "gptq": 412.9}
    shown = tuple(
        replace(
            step,
            size=sizes.get(step.id),
            size_before=whole if step.id in sizes else None,
            seconds=costs.get(step.id, 71.3),
            memory=int(2.1e9 + 4e8 * number),
            forecast=job_report.Forecast(int(2.4e9 + 4e8 * number), costs.get(step.id, 71.3) * 1.15),
        )
        for number, step in enumerate(report.steps)
    )
    place = Path("jobs") / f"{name}-3f9a1c2b70d4"
    return replace(
        report, id=place.name, path=place, output=place / "output", model="example/model-1b", size_before=whole,
        size_after=small, steps=shown, environment={},
    )  # fmt: skip

"""A job as its events tell it: cached, resumed and failed steps, gates, layers. Times are relative to 1000."""

from __future__ import annotations

from runner.progress.events import Event

LOG = "jobs/store/.staging/abc/log.txt"


def at(time: float, event: str, **fields: object) -> Event:
    return {"event": event, "time": 1000 + time, **fields}


def started(*steps: tuple[str, str]) -> Event:
    entries = [{"index": i, "id": id, "kind": kind, "state": "run"} for i, (id, kind) in enumerate(steps)]
    return at(0, "job_started", job="tiny-0123456789ab", name="tiny", directory="jobs/tiny-0123456789ab", steps=entries)


def layer(time: float, step: int, number: int, of: int, error: float | None = None, seconds: float = 2.0) -> Event:
    fields = {"step": step, "layer": number, "layers": of, "seconds": seconds, "error": error, "memory": 1_500_000_000}
    return at(time, "layer", **fields)


def train(time: float, at_step: int, of: int, loss: float, **fields: object) -> Event:
    known: dict[str, object] = {
        "step": 0, "at": at_step, "of": of, "loss": loss, "learning_rate": 0.001, "tokens_per_second": 3200.0,
        "seconds_left": 28.0, "memory": 1_900_000_000, "evaluation": None, "parts": {},
    }  # fmt: skip
    return at(time, "train", **(known | fields))


STEPS = (
    ("baseline", "evaluate.perplexity"), ("prune", "prune.wanda"), ("gptq", "quantize.gptq"),
    ("quality", "evaluate.perplexity"),
)  # fmt: skip

JOB: list[Event] = [
    started(*STEPS),
    at(0.1, "step_started", step=0, id="baseline", kind="evaluate.perplexity", key="k0", resumed_at=None, layers=2),
    layer(2, 0, 1, 2),
    layer(4, 0, 2, 2),
    at(4.5, "metric", step=0, name="perplexity", value=15.374218),
    at(5, "step_finished", step=0, id="baseline", kind="evaluate.perplexity", key="k0", digest="d0", seconds=4.9,
       memory=1_500_000_000, metrics={"perplexity": 15.374218, "loss": 2.7327, "tokens": 32704}),
    at(5.1, "step_cached", step=1, id="prune", kind="prune.wanda", key="k1", metrics={"sparsity": 0.5}),
    at(5.2, "step_started", step=2, id="gptq", kind="quantize.gptq", key="k2", resumed_at=1, layers=4),
    at(5.3, "message", step=2, level="warning", text="Cholesky failed at damping 0.01, raised to 0.02"),
    at(5.4, "progress", step=2, phase="forward", done=32, total=128, unit="windows"),
    layer(7.2, 2, 2, 4, 0.01),
    layer(7.3, 2, 3, 4, 0.02),
    at(18, "progress", step=2, phase="forward", done=96, total=128, unit="windows"),
    layer(79, 2, 4, 4, 0.0125),
    at(80, "step_finished", step=2, id="gptq", kind="quantize.gptq", key="k2", digest="d2", seconds=74.8,
       memory=1_900_000_000, metrics={"error": 0.0142, "bytes": 3_512_000}),
    at(80.1, "waiting", step=3, holder="process 41 (runner apply tiny.yaml), since 2026-01-01T00:00:00Z"),
    at(81, "step_started", step=3, id="quality", kind="evaluate.perplexity", key="k3", resumed_at=None, layers=2),
    at(84, "step_finished", step=3, id="quality", kind="evaluate.perplexity", key="k3", digest="d3", seconds=3.0,
       memory=1_500_000_000, metrics={"perplexity": 16.9, "loss": 2.827, "tokens": 32704}),
    at(84, "gate", step=3, id="quality", metric="loss", value=2.827, limit=3.0, rule="at most 3", passed=True,
       text="`loss` is 2.827, within its limit 3"),
    at(84, "gate", step=3, id="quality", metric="perplexity", value=16.9, limit=16.1, rule="at most 1.05 × `baseline`",
       passed=False, text="`perplexity` is 16.9, 0.8 above its limit 16.1 (1.05 × `baseline` 15.374)"),
    at(84.2, "job_finished", job="tiny-0123456789ab", directory="jobs/tiny-0123456789ab", exit_code=3, seconds=84.2,
       memory=1_900_000_000, output="jobs/tiny-0123456789ab/output"),
]  # fmt: skip

TRAINED: list[Event] = [
    started(("distil", "distill.logits")),
    at(0.1, "step_started", step=0, id="distil", kind="distill.logits", key="k0", resumed_at=120, layers=400,
       unit="step"),
    train(1, 121, 400, 4.0, seconds_left=None, tokens_per_second=None),
    train(1.5, 150, 400, 3.0),
    train(3, 180, 400, 2.5, evaluation=2.75),
    train(4, 200, 400, 2.25, evaluation=2.5, seconds_left=20.0),
    train(15, 210, 400, 2.3125, evaluation=2.625),
    at(16, "step_finished", step=0, id="distil", kind="distill.logits", key="k0", digest="d0", seconds=15.9,
       memory=1_900_000_000, metrics={"loss": 2.3, "evaluation_loss": 2.5, "steps": 400, "tokens": 409600}),
    at(16.1, "job_finished", job="tiny-0123456789ab", directory="jobs/tiny-0123456789ab", exit_code=0, seconds=16.1,
       memory=1_900_000_000, output="jobs/tiny-0123456789ab/output"),
]  # fmt: skip

FAILED: list[Event] = [
    *JOB[:1],
    at(1, "step_started", step=0, id="baseline", kind="evaluate.perplexity", key="k0", resumed_at=None, layers=2),
    at(2, "step_failed", step=0, id="baseline", kind="evaluate.perplexity", exit_code=1, log=LOG,
       error="`model.embed_tokens.weight` in model.safetensors holds 3 NaN values", help="download the shard again"),
    at(2, "job_finished", job="tiny-0123456789ab", directory="jobs/tiny-0123456789ab", exit_code=1, seconds=2.0,
       memory=0, output=None),
]  # fmt: skip

INTERRUPTED: list[Event] = [
    *JOB[:3],
    at(3, "interrupted", step=0, resume="runner apply tiny.yaml"),
    at(3, "job_finished", job="tiny-0123456789ab", directory="jobs/tiny-0123456789ab", exit_code=75, seconds=3.0,
       memory=1_500_000_000, output=None),
]  # fmt: skip

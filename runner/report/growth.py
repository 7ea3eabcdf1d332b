"""Say why the output of a job is larger than its model."""

from __future__ import annotations

from runner.progress import units
from runner.report.job_report import JobReport, StepReport

_TOLERANCE = 1.05  # as large as before: what `findings.times_smaller` calls so


def is_larger(job: JobReport) -> bool:
    """Return whether the weights of the output take more bytes than those of the model."""
    return bool(job.size_before and job.size_after and job.size_after > _TOLERANCE * job.size_before)


def step(job: JobReport) -> StepReport | None:
    """Return the step that added the most bytes to an output larger than the model; None where no step did."""
    if not is_larger(job):
        return None
    grown = [(one.size - one.size_before, one) for one in job.steps if one.size and one.size_before]
    most = max(grown, key=lambda pair: pair[0], default=None)
    return most[1] if most is not None and most[0] > 0 else None


def cause(job: JobReport) -> str:
    """Return a sentence: which step made the output larger, and what of it takes the bytes; empty if none is known."""
    found = step(job)
    if found is None:
        return ""
    size, before = units.size(found.size or 0), units.size(found.size_before or 0)
    return f"Step {found.id} ({found.kind}) made {size} of {before}: {_reason(found)}"


def _reason(step: StepReport) -> str:
    engine, weights = step.metrics.get("engine_bytes"), step.metrics.get("weights_bytes")
    if step.kind == "build.tensorrt" and engine and weights is not None:
        code = units.size(int(engine - weights))
        return f"{code} of the engine are code, of which `compress: true` leaves a twentieth."
    if step.kind == "build.compile":
        return "a compiled package holds all weights dense."
    if step.kind == "build.onnx":
        return "what is not quantized is stored in its `precision`."
    return "it stores weights in more bytes than its input."

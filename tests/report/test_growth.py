"""Outputs larger than the model: never good, and with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runner.report import findings, growth, terminal
from runner.report.job_report import JobReport, StepReport
from tests.report.test_terminal import JOB

SIZES = {"engine_bytes": 12.8e6, "weights_bytes": 5.4e6}


def job(kind: str, size: int, metrics: dict[str, float] | None = None) -> JobReport:
    quantized, quality = JOB.steps
    quantized = replace(quantized, size=4_500_000, size_before=11_500_000)
    built: StepReport = replace(
        quality, id="engine", kind=kind, state="done", gates=(), produces="engine", size=size, size_before=4_500_000,
        metrics=metrics or {},
    )  # fmt: skip
    return replace(JOB, status="done", steps=(quantized, built), size_before=11_500_000, size_after=size)


def test_an_engine_larger_than_its_model() -> None:
    found = job("build.tensorrt", 12_800_000, SIZES)
    cause = (
        "Step engine (build.tensorrt) made 12.8 MB of 4.50 MB: 7.40 MB of the engine are code, of which "
        "`compress: true` leaves a twentieth."
    )
    assert growth.cause(found) == cause
    verdict = findings.verdict(found)
    assert (verdict.level, verdict.word) == ("warn", "larger")
    assert verdict.text == f"The weights are 1.1 times larger. {cause} No gates."
    lines = [line.plain for line in terminal.lines(found, 120)]
    assert lines[:2] == ["tiny-0123456789ab  done  1.1 times larger", cause]
    rows = [line for line in lines if line.startswith((" ✓", " !"))]
    assert [row[1] for row in rows] == ["✓", "!"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("build.compile", "a compiled package holds all weights dense."),
        ("build.onnx", "what is not quantized is stored in its `precision`."),
        ("build.gguf", "it stores weights in more bytes than its input."),
    ],
)
def test_reasons(kind: str, reason: str) -> None:
    assert growth.cause(job(kind, 23_100_000)) == f"Step engine ({kind}) made 23.1 MB of 4.50 MB: {reason}"


def test_a_smaller_engine() -> None:
    found = job("build.tensorrt", 5_200_000, SIZES)
    assert not growth.is_larger(found)
    assert growth.cause(found) == ""
    assert findings.verdict(found).level == "good"
    assert terminal.lines(found, 120)[0].plain == "tiny-0123456789ab  done  2.2 times smaller"

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runner.report import job_report, loading, report_json, terminal
from runner.report.job_report import JobReport, StepReport

STEP = StepReport(
    id="gptq", kind="quantize.gptq", key="k", folder="01-gptq", state="done", seconds=74.8, memory=1_900_000_000,
    resumed_at=None, size=3_512_000, metrics={"error": 0.0142, "bytes": 3_512_000, "modules": 42},
    errors=(0.01, None, 0.02, float("nan")), gates=(), failure=None,
)  # fmt: skip
GATES = (
    {"event": "gate", "passed": True, "text": "`kl` is 0.01, within its limit 0.1"},
    {"event": "gate", "passed": False, "text": "`perplexity` is 16.9, 0.8 above its limit 16.1"},
)
QUALITY = replace(
    STEP, id="quality", kind="evaluate.perplexity", state="cached", seconds=3.0, size=None, errors=(), gates=GATES,
    metrics={"perplexity": 16.9, "loss": 2.8, "tokens": 32704},
)  # fmt: skip
FAILED = replace(
    STEP, id="prune", kind="prune.wanda", state="failed", seconds=1.0, memory=None, size=None, metrics={}, errors=(),
    failure={"error": "`a` holds 3 NaN values", "help": "download it again", "log": "jobs/log.txt"},
)  # fmt: skip
JOB = JobReport(
    id="tiny-0123456789ab", path=Path("/jobs/tiny-0123456789ab"), recipe="tiny", status="gate-missed", exit_code=3,
    started="2026-01-01T00:00:00Z", finished="2026-01-01T00:01:24Z", seconds=84.2, memory=1_900_000_000, model="org/m",
    size_before=11_540_992, size_after=3_512_000, output=Path("/jobs/tiny-0123456789ab/output"),
    steps=(STEP, QUALITY),
)  # fmt: skip


LOAD = (
    "load    from transformers import AutoModelForCausalLM; "
    "model = AutoModelForCausalLM.from_pretrained('/jobs/tiny-0123456789ab/output', dtype=\"auto\")"
)


def shown(report: JobReport, width: int = 120) -> str:
    return "\n".join(line.plain for line in terminal.lines(report, width)) + "\n"


def test_a_job_with_a_missed_gate() -> None:
    assert (
        shown(JOB)
        == f"""\
tiny-0123456789ab  gate-missed  3.3 times smaller
model org/m, started 2026-01-01T00:00:00Z, took 1 min 24 s, peak memory 1.90 GB
folder /jobs/tiny-0123456789ab

    step     kind                 state         time   memory     size  metrics
 ✓  gptq     quantize.gptq        done    1 min 15 s  1.90 GB  3.51 MB  error 0.0142
 ✗  quality  evaluate.perplexity  cached       3.0 s  1.90 GB           perplexity 16.9
 gptq: error by layer ▅ █! 0.01 to 0.02
 quality: gate passed: `kl` is 0.01, within its limit 0.1
 quality: gate missed: `perplexity` is 16.9, 0.8 above its limit 16.1

size    11.5 MB → 3.51 MB, 3.3 times smaller
output  /jobs/tiny-0123456789ab/output
{LOAD}
"""
    )


def test_a_failed_job() -> None:
    failed = replace(
        JOB, status="failed", exit_code=1, seconds=1.2, memory=0, size_after=None, output=None, steps=(FAILED,)
    )  # fmt: skip
    assert (
        shown(failed)
        == """\
tiny-0123456789ab  failed
model org/m, started 2026-01-01T00:00:00Z, took 1.2 s
folder /jobs/tiny-0123456789ab

    step   kind         state    time  memory  size  metrics
 ✗  prune  prune.wanda  failed  1.0 s
 prune: `a` holds 3 NaN values
   help: download it again
   log: jobs/log.txt

no checkpoint came out of this job
"""
    )


def test_a_job_that_never_ran() -> None:
    step = replace(STEP, state="pending", seconds=None, memory=None, size=None, metrics={}, errors=())
    never = replace(JOB, status="new", started=None, seconds=None, memory=None, size_before=None, size_after=None,
                    output=None, steps=(step,))  # fmt: skip
    assert (
        shown(never)
        == """\
tiny-0123456789ab  new
model org/m
folder /jobs/tiny-0123456789ab

    step  kind           state    time  memory  size  metrics
 ·  gptq  quantize.gptq  pending

no checkpoint came out of this job
"""
    )


def test_json_has_no_nan() -> None:
    import json

    document = json.loads(json.dumps(report_json.document(JOB), allow_nan=False))
    assert document["steps"][0]["errors"] == [0.01, None, 0.02, "nan"]


def test_the_line_that_loads_is_python_even_for_strange_folders() -> None:
    line = loading.line(Path('/a b/it\'s "x"\\y'))
    compile(line, "line", "exec")
    assert line.startswith("from transformers import AutoModelForCausalLM; model = ")


def test_the_last_run_leaves_out_torn_lines_and_earlier_runs(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"event":"job_started","time":1,"job":"a"}\n{"event":"metric","time":2}\n'
        '{"event":"job_started","time":3,"job":"b"}\n{"event":"met\n[]\n{"event":"interrupted","time":4}\n'
    )
    assert [event["time"] for event in job_report.last_run(job_report.events(path))] == [3, 4]
    assert job_report.events(tmp_path / "nothing") == []

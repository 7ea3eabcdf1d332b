"""A step that ends badly: what is said, with which exit code, and that the job goes on afterwards."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from runner.execute import failures
from runner.job.entries import Stage
from tests.execute.applying import Kept, applied, digests
from tests.job.plans import plan

TORCH = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"
KILLED = "the worker process was killed (SIGKILL), probably because memory ran out"
ENDED = "the worker process ended with status 7 in the middle of the step"
TAIL = "\nthe log ends with:\n    about to {}\n    on standard error"
MEMORY_HELP = (
    "close other programs, lower `samples` or `sequence_length`, or use a machine with more memory; "
    "`runner plan` shows what each step needs. The same command continues where it stopped"
)


def chain(tmp_path: Path) -> list[dict[str, Any]]:
    files = {"trace": str(tmp_path / "trace"), "control": str(tmp_path / "control")}
    return [{"id": f"step{n}", "kind": "fake.layers", "params": {"layers": 4, **files}} for n in range(2)]


def fail(tmp_path: Path, do: str, layer: int = 2) -> tuple[int, Kept, Path]:
    """Apply a chain whose first step does `do`; the exit code, the events and the log of that step."""
    steps = chain(tmp_path)
    (tmp_path / "control").write_text(json.dumps({"layer": layer, "do": do}))
    code, kept = applied(tmp_path / "jobs", steps)
    return code, kept, Stage.for_key(tmp_path / "jobs" / "store", plan(steps).steps[0].key).log


@pytest.mark.parametrize(
    ("do", "code", "error", "help"),
    [
        ("raise", 1, "unexpected KeyError: 'some_tensor'", "the traceback is in {log}"),
        ("exit", 1, "unexpected SystemExit: 3", "the traceback is in {log}"),
        ("fail", 1, "tensor `a` of model.safetensors holds 3 NaN", "download the model again"),
        ("machine", 4, "there is no GPU", "use `--device cpu`"),
        ("memory", 4, "memory ran out: MemoryError", MEMORY_HELP),
        ("torch-memory", 4, f"memory ran out: {TORCH}", MEMORY_HELP),
        ("kill", 4, KILLED + TAIL.format("kill"), MEMORY_HELP),
        ("leave", 1, ENDED + TAIL.format("leave"), "the log is {log}"),
    ],
)
def test_a_failed_step_is_told_and_resumed(tmp_path: Path, do: str, code: int, error: str, help: str) -> None:
    got, kept, log = fail(tmp_path, do)
    failed = kept.one("step_failed")
    assert (got, failed["exit_code"]) == (code, code)
    assert (failed["error"], failed["help"], failed["log"]) == (error, help.format(log=log), str(log))
    assert (failed["step"], failed["id"], failed["kind"]) == (0, "step0", "fake.layers")
    assert kept.names()[-2:] == ["step_failed", "job_finished"]

    (tmp_path / "control").unlink()
    code, kept = applied(tmp_path / "jobs", chain(tmp_path))
    assert code == 0
    started = kept.named("step_started")[0]
    assert (started["resumed_at"], started["layers"]) == (2, 4)
    assert [event["layer"] for event in kept.named("layer") if event["step"] == 0] == [3, 4]
    done = (tmp_path / "trace").read_text().splitlines()
    assert done == sorted(set(done)), "a finished layer was made again"
    applied(tmp_path / "other", chain(tmp_path))
    assert digests(tmp_path / "jobs", chain(tmp_path)) == digests(tmp_path / "other", chain(tmp_path))


def test_a_crash_names_its_signal_and_shows_where(tmp_path: Path) -> None:
    code, kept, log = fail(tmp_path, "crash")
    failed = kept.one("step_failed")
    assert code == 1
    assert failed["error"].startswith("the worker process crashed (SIGSEGV)\nthe log ends with:\n")
    assert "layers.py" in failed["error"], "the Python frames of the crash"
    assert failed["help"] == f"the log is {log}"
    assert applied(tmp_path / "jobs", chain(tmp_path))[0] == 1, "it is not restarted in silence"


def test_what_libraries_print_is_in_the_log(tmp_path: Path) -> None:
    _, _, log = fail(tmp_path, "raise")
    text = log.read_text()
    assert text.startswith("about to raise\non standard error\n")
    assert text.endswith("KeyError: 'some_tensor'\n")


def test_a_bus_error_is_a_disk(tmp_path: Path) -> None:
    failure = failures.describe_exit(-signal.SIGBUS, tmp_path / "log.txt")
    assert failure.error == (
        "the worker process was killed (SIGBUS): a memory-mapped file could not be read or written, "
        "probably because a disk is full or failing"
    )
    assert failure.exit_code == 4
    assert failure.help is not None
    assert failure.help.startswith(f"the disk that holds {tmp_path} is full: ")


def test_a_worker_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    code, kept = applied(tmp_path / "jobs", chain(tmp_path))
    failed = kept.one("step_failed")
    assert (code, failed["error"]) == (1, "the worker process ended with status 1 in the middle of the step")
    assert failed["log"].endswith("/worker.log")


def test_a_changed_kind_is_not_run_under_an_old_key(tmp_path: Path) -> None:
    from dataclasses import replace

    from runner.execute.application import apply
    from runner.execute.settings import ApplySettings

    old = plan(chain(tmp_path))
    older = replace(old, steps=tuple(replace(step, kind_version=7) for step in old.steps))
    kept = Kept()
    code = apply(older, None, ApplySettings("apply", threads=1), jobs_root=tmp_path / "jobs", sinks=[kept])
    assert (code, kept.one("step_failed")["error"]) == (
        1, "the plan was made for version 7 of `fake.layers`, the worker has 1",
    )  # fmt: skip


def test_the_log_tail_is_short(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("\n".join(f"line {n}" for n in range(5000)))
    assert failures.log_tail(log).splitlines() == [f"    line {n}" for n in range(4988, 5000)]
    assert failures.log_tail(tmp_path / "none") == ""

"""An apply that goes on without its terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from runner.commands import detached
from runner.job.batch_jobs import BatchJob, forget, note
from tests.commands.conftest import Run, steady
from tests.execute.applying import until


def status(folder: Path) -> str:
    (state,) = folder.glob("jobs/toy-*/job.json")
    return str(json.loads(state.read_text())["status"])


def test_a_detached_apply_goes_on_after_the_command_has_ended(run: Run, folder: Path) -> None:
    code, out, err = run("apply", "toy.yaml", "--detach")
    assert (code, err) == (0, "")
    match = re.fullmatch(
        r"1 job goes on in the background as process (\d+):\n  (toy-\w{12})\n\n"
        rf"output: ({re.escape(str(folder))}/jobs/\.detached/[\d-]+\.log)\n"
        r"`runner jobs` shows how far they are; `kill (\d+)` stops at a safe point\n",
        out,
    )
    assert match is not None, out
    assert match[1] == match[4]
    assert os.getsid(int(match[1])) == int(match[1]) != os.getsid(0)
    until(lambda: bool(list(folder.glob("jobs/toy-*/job.json"))) and status(folder) == "done")
    job = match[2]
    until(lambda: "output  jobs/" in Path(match[3]).read_text())
    assert steady(Path(match[3]).read_text()).startswith("toy-ID\nA toy.\n")
    assert f"{job} " in run("jobs")[1]


def test_what_the_plan_refuses_is_said_by_the_command_itself(run: Run, folder: Path) -> None:
    text = (folder / "toy.yaml").read_text().replace("points: 4", "point: 4")
    (folder / "toy.yaml").write_text(text)
    code, _, err = run("apply", "toy.yaml", "--detach")
    assert code == 2
    assert (
        err.splitlines()[0] == "toy.yaml:7:17: error[R205]: unknown key `point` of `toy.score`; did you mean `points`?"
    )
    assert not (folder / "jobs" / detached.FOLDER).exists()


def test_its_words_are_not_on_its_command_line(folder: Path) -> None:
    """A token among them is read by nobody else."""
    pid, log = detached.start(["no-such-command", "hf_secret"], folder / "jobs")
    seen = Path(f"/proc/{pid}/cmdline").read_bytes() if sys.platform == "linux" else b""
    until(lambda: "there is no command" in log.read_text())
    assert b"hf_secret" not in seen


def test_show_names_the_batch_jobs_of_steps_that_are_not_done(run: Run, job: str, folder: Path) -> None:
    plan = json.loads((folder / "jobs" / job / "plan.json").read_text())
    done = plan["steps"][1]["key"]
    store = folder / "jobs" / "store"
    note(store, BatchJob(done, "shrink", "4711", "/logs/4711.err"))
    assert "batch job" not in run("jobs", "show", job)[1]
    record = store / done / "record.json"
    record.rename(record.with_suffix(".away"))
    assert "batch job  4711: step shrink, log /logs/4711.err\n" in run("jobs", "show", job)[1]
    (found,) = json.loads(run("jobs", "show", job, "--json")[1])["batch_jobs"]
    assert (found["step"], found["number"]) == ("shrink", "4711")
    forget(store, done)
    assert "batch job" not in run("jobs", "show", job)[1]

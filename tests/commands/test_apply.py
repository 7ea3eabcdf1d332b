from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.progress import events
from tests.commands.conftest import LOAD, Run, steady


def test_the_first_apply_says_what_it_will_do_does_it_and_says_what_came_out(run: Run) -> None:
    code, out, err = run("apply", "toy.yaml")
    assert (code, err) == (0, "")
    assert (
        steady(out)
        == f"""\
toy-ID
A toy.
demo:tiny-llama: LlamaForCausalLM, 6 layers, 5.77 M parameters, 11.5 MB; on the CPU (N cores)
 step    kind        state  memory     disk   time  reason
 before  toy.score   run    100 MB           < 1 s  first run
 shrink  toy.shrink  run    250 MB  11.5 MB  ~12 s  first run
 after   toy.score   run    100 MB           < 1 s  first run
3 to run; peak memory SIZE of ALL available, 13.5 MB of disk, ~13 s

[ TIME] toy-ID: 3 steps in FOLDER/jobs/toy-ID
[ TIME] 1/3 before: toy.score started
[ TIME] 1/3 before: points 4
[ TIME] 1/3 before: finished in SECS, peak memory SIZE
[ TIME] 2/3 shrink: toy.shrink started
[ TIME] 2/3 shrink: error 0.0233
[ TIME] 2/3 shrink: finished in SECS, peak memory SIZE
[ TIME] 3/3 after: toy.score started
[ TIME] 3/3 after: points 5
[ TIME] 3/3 after: finished in SECS, peak memory SIZE
[ TIME] 3/3 after: gate passed: `points` is 5, within its limit 6 (1.5 × `before` 4)
[ TIME] done after SECS, peak memory SIZE

 ✓ before  toy.score SECS  points 4
 ✓ shrink  toy.shrink SECS  error 0.0233
 ✓ after   toy.score SECS  points 5
   gate passed: `points` is 5, within its limit 6 (1.5 × `before` 4)

size    11.5 MB → 11.5 MB
output  jobs/toy-ID/output
{LOAD}
"""
    )


def test_applying_again_takes_everything_from_the_store(run: Run, job: str) -> None:
    code, out, err = run("apply", "toy.yaml")
    assert (code, err) == (0, "")
    assert (
        steady(out)
        == f"""\
toy-ID
A toy.
demo:tiny-llama: LlamaForCausalLM, 6 layers, 5.77 M parameters, 11.5 MB; on the CPU (N cores)
nothing to run: all 3 steps are cached

[ TIME] toy-ID: 3 steps in FOLDER/jobs/toy-ID
[ TIME] 1/3 before: toy.score cached: points 4
[ TIME] 2/3 shrink: toy.shrink cached: error 0.0233
[ TIME] 3/3 after: toy.score cached: points 5
[ TIME] 3/3 after: gate passed: `points` is 5, within its limit 6 (1.5 × `before` 4)
[ TIME] done after SECS

 ✓ before  toy.score      cached  points 4
 ✓ shrink  toy.shrink     cached  error 0.0233
 ✓ after   toy.score      cached  points 5
   gate passed: `points` is 5, within its limit 6 (1.5 × `before` 4)

size    11.5 MB → 11.5 MB
output  jobs/toy-ID/output
{LOAD}
"""
    )


def test_a_missed_gate(run: Run, job: str) -> None:
    code, out, _ = run("apply", "toy.yaml", "--set", "points=9")
    assert code == 3
    assert "] 3/3 after: gate missed: `points` is 9, 3 above its limit 6 (1.5 × `before` 4)\n" in out
    assert "   gate missed: `points` is 9, 3 above its limit 6 (1.5 × `before` 4)\n" in out
    assert "output  jobs/toy-" in out


def test_a_failing_step(run: Run) -> None:
    code, out, err = run("apply", "toy.yaml", "--set", "fail=true", "--progress", "none")
    assert (code, err) == (1, "")
    assert (
        steady(out.partition("disk, ~13 s\n\n")[2])
        == """\
 ✓ before  toy.score SECS  points 4
 ✗ shrink  toy.shrink SECS
   tensor `a` of model.safetensors holds 3 NaN values
   help: download the model again
   log: FOLDER/jobs/store/.staging/KEY/log.txt
 · after   toy.score
"""
    )


def test_jsonl_is_all_there_is_on_stdout(run: Run, job: str) -> None:
    code, out, err = run("apply", "toy.yaml", "--progress", "jsonl")
    assert (code, err) == (0, "")
    names = [json.loads(line)["event"] for line in out.splitlines()]
    assert set(names) <= events.NAMES
    assert (names[0], names[-1]) == ("job_started", "job_finished")


def test_no_progress(run: Run, job: str) -> None:
    code, out, _ = run("apply", "toy.yaml", "--progress", "none")
    assert code == 0
    assert "started" not in out
    assert " ✓ shrink  toy.shrink " in out


def test_a_terminal_gets_the_live_view(run: Run, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    code, out, _ = run("apply", "toy.yaml")
    assert code == 0
    assert "\x1b[?25h" in out
    assert out.count("gate passed: ") >= 1
    assert "] 1/3 before: " not in out


@pytest.mark.nightly
def test_the_jobs_folder_comes_from_the_environment(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_JOBS", str(folder / "elsewhere"))
    assert run("apply", "toy.yaml", "--progress", "none")[0] == 0
    assert [path.name for path in (folder / "elsewhere").glob("toy-*")] != []
    assert not (folder / "jobs").exists()


def test_a_jobs_folder_that_is_a_file(run: Run, folder: Path) -> None:
    (folder / "jobs").write_text("")
    assert run("apply", "toy.yaml") == (
        2, "", "error: the jobs folder jobs is a file\nhelp: name another with --jobs\n"
    )  # fmt: skip


def test_threads_must_be_a_number(run: Run) -> None:
    message = "argument --threads: must be a whole number of at least 1; got 'many'"
    assert run("apply", "toy.yaml", "--threads", "many") == (
        2, "", f"error: {message}\nhelp: `runner apply --help` shows how to use it\n"
    )  # fmt: skip


def test_a_wrong_recipe_shows_its_complaints_and_nothing_else(run: Run, folder: Path) -> None:
    text = (folder / "toy.yaml").read_text().replace("points: 4", "pionts: 4")
    (folder / "toy.yaml").write_text(text)
    code, out, err = run("apply", "toy.yaml")
    assert (code, out) == (2, "")
    assert "toy.yaml:7:17: error[R205]: " in err
    assert "did you mean `points`?" in err


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.execute import application
    from runner.execute.settings import ApplySettings

    def stopped(
        plan: object, preview: object, settings: ApplySettings, *, sinks: list[events.Sink], **_: object
    ) -> int:
        for event in (
            events.make("job_started", job="toy-1", name="toy", directory="jobs/toy-1", steps=[]),
            events.make("interrupted", step=None, resume=settings.command),
            events.make(
                "job_finished", job="toy-1", directory="jobs/toy-1", exit_code=75, seconds=1.0, memory=0, output=None
            ),
        ):
            for sink in sinks:
                sink.send(event)
        return 75

    monkeypatch.setattr(application, "apply", stopped)
    code, out, _ = run("apply", "toy.yaml", "--set", "points=6", "--progress", "none")
    assert code == 75
    assert out.endswith(
        "\ninterrupted at a safe point; continue with:\n  runner apply toy.yaml --set points=6 --progress none\n"
    )

"""`runner store`, and an apply that shares steps with a remote store."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from runner.job import retention
from runner.job.locks import Lock
from runner.job.store import Store
from tests.commands.conftest import Run


def keys(folder: Path) -> list[str]:
    return list(Store(folder / "jobs" / "store").keys())


def aged(folder: Path, days: int, monkeypatch: Any) -> None:
    """Let the clock be `days` later."""
    now = time.time()
    monkeypatch.setattr("runner.job.retention.time.time", lambda: now + days * 86400)


def entry_of(folder: Path, kind: str) -> Path:
    store = Store(folder / "jobs" / "store")
    found = [entry for key in store.keys() if (entry := store.entry(key)) and entry.record.kind == kind]  # noqa: SIM118
    return found[0].path


def test_ls(run: Run, job: str, folder: Path) -> None:
    code, out, _ = run("store", "ls")
    assert code == 0
    head, *rows, total = out.splitlines()
    assert head.split() == ["key", "kind", "size", "made", "(UTC)", "used", "by"]
    assert sorted(row.split()[1] for row in rows) == ["toy.score", "toy.score", "toy.shrink"]
    assert all(row.endswith(job) for row in rows)
    assert total.startswith("3 entries, 1")
    entries = json.loads(run("store", "ls", "--json")[1])
    assert {(entry["kind"], entry["id"]) for entry in entries} == {
        ("toy.score", "before"), ("toy.shrink", "shrink"), ("toy.score", "after"),
    }  # fmt: skip
    assert all(entry["jobs"] == [job] for entry in entries)


def test_ls_of_nothing(run: Run) -> None:
    assert run("store", "ls") == (0, "no entries in jobs/store\n", "")


def test_verify_moves_a_damaged_entry_aside(run: Run, job: str, folder: Path) -> None:
    assert run("store", "verify") == (0, "3 of 3 entries have the bytes that were made\n", "")
    path = entry_of(folder, "toy.shrink")
    file = path / "out" / "model.safetensors"
    status = file.stat()
    file.chmod(0o644)
    with open(file, "r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\1")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, out, _ = run("store", "verify")
    assert code == 1
    moved = folder / "jobs" / "store" / ".corrupt" / f"{path.name}-1"
    assert out == (
        f"{path.name}: out/model.safetensors has other bytes than were written; moved to {moved}\n"
        "2 of 3 entries have the bytes that were made\n"
    )
    assert moved.is_dir()
    assert run("store", "verify", job)[0] == 0


def test_large_files_are_hashed_too(run: Run, job: str, folder: Path, monkeypatch: Any) -> None:
    """A look trusts the times of large files; verify does not."""
    monkeypatch.setattr("runner.job.entries.ALWAYS_HASHED", 1000)
    file = entry_of(folder, "toy.shrink") / "out" / "model.safetensors"
    status = file.stat()
    file.chmod(0o644)
    with open(file, "r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\1")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "nothing to run: all 3 steps are cached" in run("plan", "toy.yaml")[1]
    assert run("store", "verify")[0] == 1


@pytest.mark.nightly
def test_gc_keeps_what_is_recent_accepted_or_among_the_last(run: Run, job: str, folder: Path, monkeypatch: Any) -> None:
    for points in (4, 3, 9):
        run("apply", "toy.yaml", "--set", f"points={points}", "--progress", "none")
    assert run("store", "gc") == (0, "nothing to remove\n", "")
    aged(folder, 31, monkeypatch)
    assert run("store", "gc", "--older-than", "40d")[1] == "nothing to remove\n"
    assert run("store", "gc", "--keep-jobs", "4")[1] == "nothing to remove\n"
    code, out, _ = run("store", "gc", "--keep-jobs", "1")
    lines = out.splitlines()
    # points=9 is the last one; points=3 the accepted one, because 9 missed its gate.
    assert sorted(line.split()[0] for line in lines[:-1]) == ["entry", "entry", "job", "job"]
    assert lines[-1].endswith(" would be freed; `--yes` removes it")
    assert len(keys(folder)) == 6
    code, out, _ = run("store", "gc", "--keep-jobs", "1", "--yes")
    assert (code, out.splitlines()[-1].endswith(" freed")) == (0, True)
    assert len(keys(folder)) == 4
    assert not (folder / "jobs" / job).exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)


def test_gc_keeps_the_steps_of_an_accepted_job_whose_folder_is_gone(
    run: Run, job: str, folder: Path, monkeypatch: Any
) -> None:
    run("jobs", "rm", job, "--keep-store")
    aged(folder, 31, monkeypatch)
    assert run("store", "gc", "--keep-jobs", "0") == (0, "nothing to remove\n", "")
    (folder / "jobs" / "accepted" / "toy.json").unlink()
    assert len(run("store", "gc", "--keep-jobs", "0")[1].splitlines()) == 4


def test_gc_leaves_a_job_that_is_applied_by_now_and_its_entries(
    run: Run, job: str, folder: Path, monkeypatch: Any
) -> None:
    root = folder / "jobs"
    (root / "accepted" / "toy.json").unlink()
    aged(folder, 31, monkeypatch)
    found = retention.garbage(root, 0, 30 * 86400.0)
    assert (found.jobs, len(found.entries)) == ((job,), 3)
    with Lock(root / job / ".lock", "runner apply toy.yaml"):
        retention.remove(root, found)
    assert (root / job / "plan.json").is_file()
    assert len(keys(folder)) == 3
    retention.remove(root, found)
    assert (keys(folder), (root / job).exists()) == ([], False)


def test_gc_leaves_entries_of_a_job_that_came_while_it_removed_others(
    run: Run, job: str, folder: Path, monkeypatch: Any
) -> None:
    root = folder / "jobs"
    (root / "accepted" / "toy.json").unlink()
    aged(folder, 31, monkeypatch)
    found = retention.garbage(root, 0, 30 * 86400.0)
    plan = (root / job / "plan.json").read_text()
    remove = Store.remove

    def removed(store: Store, key: str) -> int:
        (root / "new").mkdir()
        (root / "new" / "plan.json").write_text(plan)
        return remove(store, key)

    monkeypatch.setattr(Store, "remove", removed)
    retention.remove(root, found)
    assert keys(folder) == sorted(entry.key for entry in found.entries[1:])


def test_gc_removes_leftovers(run: Run, job: str, folder: Path, monkeypatch: Any) -> None:
    store = folder / "jobs" / "store"
    for name in (".corrupt/" + "a" * 64 + "-1", ".staging/" + "b" * 64, ".staging/" + "c" * 64 + ".pull"):
        (store / name).mkdir(parents=True)
    aged(folder, 31, monkeypatch)
    document = json.loads(run("store", "gc", "--json")[1])
    assert (document["removed"], len(document["leftovers"]), document["entries"]) == (False, 3, [])
    assert run("store", "gc", "--yes")[0] == 0
    assert [p for name in (".corrupt", ".staging") for p in (store / name).iterdir()] == []
    assert len(keys(folder)) == 3


def test_push_and_pull(run: Run, job: str, folder: Path) -> None:
    remote = folder / "remote"
    code, out, _ = run("store", "push", "--remote", str(remote))
    assert code == 0
    assert out.startswith(f"3 entries pushed to file://{remote}, 11.")
    assert run("store", "push", "--remote", str(remote))[1] == f"3 entries pushed to file://{remote}, 0 B moved\n"
    before = keys(folder)
    run("jobs", "rm", "--all")
    assert keys(folder) == []
    code, out, _ = run("store", "pull", "--remote", str(remote))
    assert (code, keys(folder)) == (0, before)
    assert "nothing to run: all 3 steps are cached" in run("plan", "toy.yaml")[1]


def test_a_refused_entry_keeps_no_other_back(run: Run, job: str, folder: Path) -> None:
    remote = folder / "remote"
    run("store", "push", "--remote", str(remote))
    bad = entry_of(folder, "toy.shrink").name
    path = remote / "records" / f"{bad}.json"
    path.write_text(path.read_text().replace("0.0233", "0.0001"))
    run("jobs", "rm", "--all")
    code, out, _ = run("store", "pull", "--remote", str(remote))
    assert code == 1
    assert out.startswith(
        f"error: the entry {bad} of file://{remote} is refused: its record was changed after it was written\n"
        f"help: `runner store push {bad[:12]} --replace` where a sound one is puts it in its place\n"
        f"2 entries pulled from file://{remote}, "
    )
    assert len(keys(folder)) == 2


def test_no_remote_is_named(run: Run, job: str) -> None:
    assert run("store", "push") == (
        2, "", "error: no remote store is named\nhelp: write `--remote URL`, or set RUNNER_STORE_REMOTE\n"
    )  # fmt: skip


def test_a_name_that_is_nothing(run: Run, job: str) -> None:
    assert run("store", "verify", "xyz") == (
        2, "",
        "error: `xyz` is neither the beginning of a key nor a job\nhelp: `runner store ls` shows the keys\n",
    )  # fmt: skip


def test_an_action_that_is_not_there(run: Run) -> None:
    code, _, err = run("store", "fetch")
    assert code == 2
    assert err.startswith("error: argument ACTION: invalid choice: 'fetch'")


def test_apply_takes_from_the_remote_store_and_gives_to_it(run: Run, folder: Path, monkeypatch: Any) -> None:
    remote = folder / "remote"
    monkeypatch.setenv("RUNNER_STORE_REMOTE", f"file://{remote}")
    assert run("apply", "toy.yaml", "--progress", "none")[0] == 0
    assert len(list((remote / "records").iterdir())) == 3
    code, out, _ = run("apply", "toy.yaml", "--progress", "jsonl", "--jobs", "elsewhere")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [e["event"] for e in events if e["event"].startswith("step_")] == ["step_cached"] * 3
    assert [e["text"] for e in events if e["event"] == "message"] == [
        f"`{id}`: pulled from file://{remote}" for id in ("before", "shrink", "after")
    ]
    assert run("verify", "--jobs", "elsewhere", "toy-")[0] == 0


def test_apply_does_not_believe_a_bad_entry_and_makes_it_again(run: Run, job: str, folder: Path) -> None:
    remote = folder / "remote"
    run("store", "push", "--remote", str(remote))
    bad = entry_of(folder, "toy.shrink").name
    path = remote / "records" / f"{bad}.json"
    path.write_text(path.read_text().replace("0.0233", "0.0001"))
    arguments = ("apply", "toy.yaml", "--progress", "jsonl", "--jobs", "elsewhere", "--remote", str(remote))
    code, out, _ = run(*arguments)
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [e["id"] for e in events if e["event"] == "step_finished"] == ["shrink"]
    (warning,) = [e["text"] for e in events if e["event"] == "message" and e["level"] == "warning"]
    assert warning == (
        f"`shrink`: the entry {bad} of file://{remote} is refused: its record was changed after it was written"
    )
    # What was made took the place of the bad one.
    code, out, _ = run(*arguments[:-3], "third", *arguments[-2:])
    assert (code, "refused" in out, '"step_finished"' in out) == (0, False, False)


def test_a_remote_that_fails_ends_no_job(run: Run, folder: Path) -> None:
    (folder / "remote").write_text("a file, no folder")
    code, out, _ = run("apply", "toy.yaml", "--progress", "jsonl", "--remote", str(folder / "remote"))
    warnings = [e["text"] for line in out.splitlines() if (e := json.loads(line))["event"] == "message"]
    assert code == 0
    assert len(warnings) == 1
    assert warnings[0].startswith(f"`before`: the remote store file://{folder / 'remote'} cannot be reached or written")


@pytest.mark.parametrize("option", ["--keep-jobs=-1", "--keep-jobs=x"])
def test_how_many_jobs_to_keep(run: Run, option: str) -> None:
    code, _, err = run("store", "gc", option)
    assert (code, "argument --keep-jobs: must be a whole number; got " in err) == (2, True)

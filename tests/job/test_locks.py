from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.errors import StoreError
from runner.job import locks
from runner.job.locks import Holder, Lock

HOLD = """
import sys
from pathlib import Path
from runner.job.locks import Lock
Lock(Path(sys.argv[1]), "runner apply a.yaml").acquire()
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_says_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    with hold(path) as process:
        by = locks.holder(path)
        assert by is not None
        assert (by.pid, by.command) == (process.pid, "runner apply a.yaml")
        assert str(by) == f"process {process.pid} (runner apply a.yaml), since {by.started}"
        heard: list[Holder] = []
        assert not Lock(path).acquire(wait=False, on_wait=heard.append)
        assert not Lock(path).acquire(on_wait=heard.append, stop=lambda: bool(heard))
        assert heard == [by]
        process.kill()
    assert locks.holder(path) is None
    assert Lock(path).acquire(wait=False)


def test_a_holder_elsewhere_is_named_with_its_machine() -> None:
    assert str(Holder(12, "node7", "2026-01-01T00:00:00Z", "")) == "process 12 on node7, since 2026-01-01T00:00:00Z"
    assert str(locks.UNKNOWN) == "another process"


def test_a_free_lock_is_taken_again(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    for _ in range(2):
        with lock:
            assert not Lock(tmp_path / "lock").acquire(wait=False)
        assert locks.holder(tmp_path / "lock") is None
    assert locks.holder(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_a_waiter_whose_file_was_removed_locks_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the opening and the locking of the file, its folder goes away and comes back."""
    path = tmp_path / "job" / "lock"
    taken = fcntl.flock
    turns: list[int] = []

    def flock(fd: int, how: int) -> None:
        taken(fd, how)
        if not turns:
            shutil.rmtree(path.parent)
        turns.append(fd)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = Lock(path)
    assert lock.acquire()
    assert len(turns) == 2
    monkeypatch.undo()
    assert not Lock(path).acquire(wait=False)
    lock.release()


def test_somebody_who_only_looks_does_not_refuse_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.touch()
    looking = os.open(path, os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_EX)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            os.close(looking)

    monkeypatch.setattr("time.sleep", sleep)
    assert Lock(path).acquire(wait=False)
    assert len(pauses) == 3


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError) as caught:
        Lock(tmp_path / "lock").acquire()
    assert caught.value.render() == (
        "error: the file system of the jobs folder has no locks (No locks available)\n"
        "help: choose a jobs folder on a local disk, or mount the file system with locks"
    )

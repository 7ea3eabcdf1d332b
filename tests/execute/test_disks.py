"""Folders that cannot be written, and disks that fill up."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runner.errors import MachineError, StoreError
from tests.execute.applying import applied, digests

STEPS: list[dict[str, Any]] = [{"id": "prune", "kind": "fake.layers", "params": {"layers": 4, "size": 160_000}}]


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A small file system of its own at `path`; skips where this user may not mount one."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_stops_the_step_and_a_retry_goes_on(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=2m") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1_500_000))
        code, kept = applied(disk / "jobs", STEPS)
        failed = kept.one("step_failed")
        assert (code, failed["exit_code"]) == (4, 4)
        start, _, rest = failed["error"].partition(" is full: ")
        assert start == f"the disk that holds {disk}/jobs/store"
        assert rest.endswith(" of 2.1 MB are free")
        assert failed["help"] == "free some space there; the same command then continues where it stopped"
        finished = [event["layer"] for event in kept.named("layer")]
        assert finished

        ballast.unlink()
        code, kept = applied(disk / "jobs", STEPS)
        assert code == 0
        assert kept.one("step_started")["resumed_at"] == finished[-1]
        applied(tmp_path / "other", STEPS)
        assert digests(disk / "jobs", STEPS) == digests(tmp_path / "other", STEPS)


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k") as disk:
        applied(disk / "jobs", [{"id": "a", "kind": "fake.score", "produces": "metrics"}])
        with pytest.raises(OSError, match="No space left"):
            fill(disk / "ballast")
        with pytest.raises(MachineError) as caught:
            applied(disk / "jobs", STEPS)
        assert caught.value.message == f"the disk that holds {disk}/jobs/store is full: 0 B of 65.5 kB are free"


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def test_a_read_only_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        with pytest.raises(StoreError) as caught:
            applied(disk / "jobs", STEPS)
        assert caught.value.render() == (
            f"error: the jobs folder {disk}/jobs cannot be written: Read-only file system\n"
            "help: make it writable, or choose another one with `--jobs DIR`"
        )


def test_a_folder_that_became_read_only(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        assert applied(disk / "jobs", STEPS)[0] == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreError, match=r"cannot be written: Read-only file system"):
            applied(disk / "jobs", STEPS)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("")
    with pytest.raises(StoreError) as caught:
        applied(tmp_path / "jobs", STEPS)
    assert caught.value.message == f"the jobs folder {tmp_path}/jobs cannot be written: Not a directory"


def test_torn_progress_is_begun_again(tmp_path: Path) -> None:
    """What a full disk may leave of progress.json is no reason to fail."""
    steps: list[dict[str, Any]] = [{"id": "a", "kind": "fake.layers", "params": {"control": str(tmp_path / "control")}}]
    (tmp_path / "control").write_text(json.dumps({"layer": 2, "do": "fail"}))
    assert applied(tmp_path / "jobs", steps)[0] == 1
    (progress,) = (tmp_path / "jobs" / "store" / ".staging").glob("*/progress.json")
    progress.write_text('{"layer": 2, "la')
    (tmp_path / "control").unlink()
    code, kept = applied(tmp_path / "jobs", steps)
    assert (code, kept.one("step_started")["resumed_at"]) == (0, None)

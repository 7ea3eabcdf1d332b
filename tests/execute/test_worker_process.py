"""What the worker's process is started with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runner.execute.process import WorkerProcess
from tests.execute.applying import until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def environment(log: Path) -> dict[str, str]:
    worker = WorkerProcess(log, 3)
    try:
        laid = Path(f"/proc/{worker.pid}/environ")
        until(lambda: "OMP_NUM_THREADS=" in laid.read_text())  # empty until the kernel has laid it
        entries = laid.read_text().split("\0")
    finally:
        worker.close()
    return dict(entry.split("=", 1) for entry in entries if entry)


def test_waiting_threads_sleep_unless_the_user_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spinning, they take the core from the thread that they wait for as soon as anything else runs."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    found = environment(tmp_path / "log")
    assert (found["OMP_WAIT_POLICY"], found["GOMP_SPINCOUNT"], found["OMP_NUM_THREADS"]) == ("passive", "10000", "3")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment(tmp_path / "log")["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    found = environment(tmp_path / "log")
    assert found["OMP_WAIT_POLICY"] == "active"
    assert "GOMP_SPINCOUNT" not in found

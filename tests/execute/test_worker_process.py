"""What the worker's process is started with."""

from __future__ import annotations

import subprocess
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


_MANY_SHAPES = """
import torch
from pathlib import Path
torch.set_num_threads(1)
weight = torch.ones(64, 64, dtype=torch.bfloat16)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
with torch.inference_mode():
    for rows in range(1, 501):
        torch.nn.functional.linear(torch.ones(rows, 64, dtype=torch.bfloat16), weight)
        if rows == 100:
            before = resident()
print(resident() - before)
"""


@pytest.mark.nightly
def test_products_of_many_shapes_leave_no_memory_behind(tmp_path: Path) -> None:
    """A mixture of experts multiplies another number of tokens for every expert of every batch."""
    command = [sys.executable, "-c", _MANY_SHAPES]
    done = subprocess.run(command, env=environment(tmp_path / "log"), capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20e6

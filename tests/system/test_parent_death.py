"""A process that dies with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = "import os, sys, time; from runner.system.parent_death import die_with_parent; die_with_parent(sys.argv[1]); "
CHILD += "print(os.getpid(), flush=True); time.sleep(60)"
PARENT = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no signal at a parent's death")
def test_it_dies_when_its_parent_is_killed() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _runs(child)
        parent.kill()
    for _ in range(200):
        if not _runs(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it outlived its parent")


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

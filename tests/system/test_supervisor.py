"""A command under supervision ends with all its children, however its parent ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.system import process_tree

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
# A shell with a child, one in a session of its own, and an orphan in another that ignores SIGTERM.
FAMILY = "sleep 600 & setsid sleep 600 & (setsid sh -c 'trap \"\" TERM; sleep 600; sleep 600' &); echo ready; sleep 600"


def start(command: list[str], **environment: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.system.supervisor"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps({"command": command, "environment": {**os.environ, **environment}}).encode() + b"\n")
    process.stdin.flush()
    return process


def until(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def family(supervisor: subprocess.Popen[bytes]) -> dict[int, int]:
    """Return the processes below the supervisor, all of them there."""
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == b"ready\n"
    assert until(lambda: len(process_tree.descendants(supervisor.pid)) >= 6)
    return process_tree.descendants(supervisor.pid)


def gone(processes: dict[int, int]) -> bool:
    return until(lambda: not any(process_tree.runs(pid, start) for pid, start in processes.items()))


@linux
def test_the_end_of_stdin_ends_every_process() -> None:
    supervisor = start(["sh", "-c", FAMILY])
    found = family(supervisor)
    supervisor.communicate()
    assert gone(found)


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_supervisor_ends_every_process(number: signal.Signals) -> None:
    supervisor = start(["sh", "-c", FAMILY])
    found = family(supervisor)
    supervisor.send_signal(number)
    assert supervisor.wait(20) == 128 + signal.SIGTERM
    assert gone(found)
    supervisor.communicate()


@linux
def test_a_parent_that_is_killed_takes_every_process_with_it(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import json, subprocess, sys, os\n"
        "p = subprocess.Popen([sys.executable, '-m', 'runner.system.supervisor'], stdin=subprocess.PIPE,\n"
        "                     start_new_session=True)\n"
        f"asked = {{'command': ['sh', '-c', {FAMILY!r}], 'environment': dict(os.environ)}}\n"
        "p.stdin.write(json.dumps(asked).encode())\n"
        "p.stdin.write(b'\\n'); p.stdin.flush()\n"
        "print(p.pid, flush=True)\n"
        "p.wait()\n"
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        supervisor = int(parent.stdout.readline())
        assert until(lambda: len(process_tree.descendants(supervisor)) >= 6)
        found = process_tree.descendants(parent.pid)
        assert supervisor in found
        parent.kill()
    assert gone(found)


@linux
def test_the_command_dies_with_a_supervisor_that_is_killed() -> None:
    supervisor = start(["sleep", "600"])
    assert until(lambda: len(process_tree.descendants(supervisor.pid)) == 1)
    found = process_tree.descendants(supervisor.pid)
    supervisor.kill()
    assert gone(found)
    supervisor.communicate()


def test_status_words_and_environment_are_those_of_the_command() -> None:
    supervisor = start(["sh", "-c", 'echo "$ANSWER"; exit 7'], ANSWER="42")
    assert supervisor.wait(20) == 7
    assert supervisor.communicate() == (b"42\n", b"")
    killed = start(["sh", "-c", "kill -9 $$"])
    assert killed.wait(20) == 137
    killed.communicate()
    missing = start(["/nowhere/server"])
    assert missing.wait(20) == 127
    assert missing.communicate() == (b"", b"/nowhere/server: No such file or directory\n")


@linux
def test_memory_is_that_of_all_processes() -> None:
    code = "import time; block = bytearray(64 << 20); print('ready', flush=True); time.sleep(600)"
    supervisor = start([sys.executable, "-c", code])
    assert supervisor.stdout is not None
    supervisor.stdout.readline()
    found = process_tree.memory(process_tree.descendants(supervisor.pid))
    assert 64 << 20 < found < 96 << 20
    supervisor.communicate()

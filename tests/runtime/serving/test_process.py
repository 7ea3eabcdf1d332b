"""Ports, starts, last words and ends of servers; the servers here are programs of a few lines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.errors import Interrupted, MachineError, StepFailed
from runner.runtime.serving.client import Client
from runner.runtime.serving.commands import HOST, SERVERS
from runner.runtime.serving.process import ServerProcess, free_port

ANSWERS = (
    "import http.server, subprocess, sys\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "class H(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers()\n"
    "    def log_message(self, *_): pass\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
)


def start(folder: Path, code: str, *arguments: str) -> ServerProcess:
    return ServerProcess([sys.executable, "-c", code, *arguments], dict(os.environ), folder / "server.log")


def wait(server: ServerProcess, port: int, seconds: float = 20) -> float:
    client = Client(port, SERVERS["other"], "tiny")
    return server.wait_until_ready(client, "/v1/models", seconds, lambda: None)


def taken(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex((HOST, port)) == 0


def test_a_server_is_ready_when_it_answers_and_its_port_is_free_after_it(tmp_path: Path) -> None:
    port = free_port(None)
    server = start(tmp_path, ANSWERS, str(port))
    try:
        assert 0 < wait(server, port) < 20
        assert taken(port)
    finally:
        server.stop()
    assert not taken(port)
    assert free_port(port) == port
    server.stop()  # a second time does nothing


@pytest.mark.parametrize(
    ("code", "how", "help"),
    [
        ("os.kill(os.getpid(), 4)", "signal 4, an instruction that this processor does not have",
         "install a build of the server for this processor"),
        ("os.kill(os.getpid(), 9)", "signal 9", "the log of the step has all its words"),
        ("sys.exit(255)", "status 255", "the log of the step has all its words"),
    ],
)  # fmt: skip
def test_how_a_server_ended(tmp_path: Path, code: str, how: str, help: str) -> None:
    server = start(tmp_path, f"import os, sys; print('loading', flush=True); {code}")
    try:
        with pytest.raises(StepFailed) as caught:
            wait(server, free_port(None))
    finally:
        server.stop()
    assert (caught.value.message, caught.value.help) == (
        f"the server ended with {how}; its last words:\n    loading", help,
    )  # fmt: skip


def test_a_port_in_use_is_refused_by_name() -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(MachineError) as caught:
            free_port(port)
    assert caught.value.render() == (
        f"error: port {port} of 127.0.0.1 cannot be had: Address already in use\n"
        "help: leave `port` out, for one that is free, or end what listens there"
    )


def test_a_server_that_does_not_start_has_its_own_last_words_shown(tmp_path: Path) -> None:
    code = "print('loading', flush=True); raise RuntimeError('no kernel for 3 bits')"
    server = start(tmp_path, code)
    with pytest.raises(StepFailed) as caught:
        wait(server, free_port(None))
    server.stop()
    assert caught.value.render() == (
        "error: the server ended with status 1; its last words:\n"
        "    loading\n"
        "    Traceback (most recent call last):\n"
        '      File "<string>", line 1, in <module>\n'
        "    RuntimeError: no kernel for 3 bits\n"
        "help: the log of the step has all its words"
    )


def test_the_error_that_a_long_log_buries_is_shown_first(tmp_path: Path) -> None:
    code = "print('(Engine pid=7) ValueError: 3 bits\\n' + '\\n'.join(map(str, range(20))))"
    server = start(tmp_path, code)
    with pytest.raises(StepFailed) as caught:
        wait(server, free_port(None))
    server.stop()
    assert caught.value.message.splitlines() == [
        "the server ended with status 0; its last words:", "    ValueError: 3 bits", "    ...",
        *(f"    {number}" for number in range(10, 20)),
    ]  # fmt: skip


def test_a_server_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    server = start(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(StepFailed) as caught:
        wait(server, free_port(None), 0.3)
    server.stop()
    assert caught.value.render() == (
        "error: the server did not answer within 0.3 seconds\n"
        "help: raise `start_timeout`, or see the log of the step for what it waits for"
    )


def test_a_stop_request_ends_the_wait(tmp_path: Path) -> None:
    server = start(tmp_path, "import time; time.sleep(600)")

    def stopped() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        server.wait_until_ready(Client(free_port(None), SERVERS["other"], "tiny"), "/health", 20, stopped)
    server.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the supervisor's reach is Linux's")
def test_nothing_is_left_of_a_server_whose_owner_was_killed(tmp_path: Path) -> None:
    port = free_port(None)
    owner = tmp_path / "owner.py"
    owner.write_text(
        "import sys, time, os\nfrom pathlib import Path\n"
        "from runner.runtime.serving.process import ServerProcess\n"
        f"server = ServerProcess([sys.executable, '-c', {ANSWERS!r}, '{port}'], dict(os.environ), Path('log'))\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, owner], cwd=tmp_path) as process:
        deadline = time.monotonic() + 20
        while not taken(port) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert taken(port)
        process.kill()
    deadline = time.monotonic() + 20
    while taken(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert free_port(port) == port

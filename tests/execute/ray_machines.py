"""Several machines on this one, by network and mount namespaces of Linux: each has its own address and folders."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.execute.applying import KINDS, ROOT

_NETWORK = "10.91.0"
_PORT = 6379


def missing() -> str | None:
    """Return why there can be no such machines here; None where there can."""
    if importlib.util.find_spec("ray") is None:
        return "the extra `ray` is not installed"
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "no `ip` or `unshare` here (Debian: apt-get install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return "this machine makes no namespaces" if tried.returncode else None


class Machines:
    """A head, machine 0, and `workers`. Folders that are `hidden` are empty on the workers."""

    def __init__(self, folder: Path, workers: int, hidden: Sequence[Path] = ()) -> None:
        self._folder = folder
        self._count = workers + 1
        self._hidden = hidden
        name = secrets.token_hex(3)  # what is deleted may be there for a while
        self._prefix, self._bridge = f"runner{name}", f"rb{name}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sessions = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # sockets have short paths
        self.gateway = f"{_NETWORK}.1"
        self.address = f"{_NETWORK}.10:{_PORT}"

    def __enter__(self) -> Self:
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.gateway}/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")
        for index in range(self._count):
            name, outer = f"{self._prefix}-{index}", f"{self._bridge}v{index}"
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", outer, "master", self._bridge, "up")
            _run("ip", "-n", name, "addr", "add", f"{_NETWORK}.{10 + index}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "route", "add", "default", "via", self.gateway)
        return self

    def on_head(self) -> tuple[str, ...]:
        """Return the beginning of a command that runs on the head."""
        return ("ip", "netns", "exec", f"{self._prefix}-0")

    def start_ray(self, variables: dict[str, str]) -> None:
        """Start Ray on all machines. `variables` are the credentials that each of them has."""
        for index in range(self._count):
            self._start(index, variables)
            if index == 0:
                self._await(1, variables)
        self._await(self._count, variables)

    def _await(self, count: int, variables: dict[str, str]) -> None:
        until = time.monotonic() + 400
        while time.monotonic() < until:
            listed = subprocess.run(
                [*self.on_head(), sys.executable, "-c", _COUNT, self.address], capture_output=True, text=True,
                check=False, env=_environment(variables), cwd=ROOT,
            ).stdout  # fmt: skip
            if listed.strip() == str(count):
                return
        raise TimeoutError(f"Ray does not start on {count} machines, see {self._folder}/nodes/*/log")

    def _start(self, index: int, variables: dict[str, str]) -> None:
        own = self._folder / "nodes" / str(index)
        (own / "ray").mkdir(parents=True)
        (own / "store").mkdir()
        head = ["--head", f"--port={_PORT}", "--include-dashboard=false", f"--temp-dir={self._sessions}"]
        role = head if index == 0 else [f"--address={self.address}"]
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats",
               f"--node-ip-address={_NETWORK}.{10 + index}", f"--num-cpus={int(index > 0)}",
               "--object-store-memory=80000000", *role]  # fmt: skip
        hidden = [f"mkdir -p {path} && mount -t tmpfs none {path}" for path in self._hidden]
        own_folders = [f"mount --bind {own}/ray {self._sessions}", *hidden] if index else []  # drivers run on the head
        script = " && ".join([f"hostname machine{index}", *own_folders])
        # Ray gives up where a machine needs longer than half a minute to start.
        words = ["ip", "netns", "exec", f"{self._prefix}-{index}", "unshare", "--mount", "--uts", "sh", "-c",
                 f'{script} && for try in 1 2 3 4 5; do "$@"; done', "sh", *ray]  # fmt: skip
        log = open(own / "log", "wb")  # noqa: SIM115  the process writes to it
        with log:
            environment = _environment(variables) | {"RUNNER_NODE_STORE": str(own / "store")}
            self._processes.append(subprocess.Popen(
                words, stdout=log, stderr=log, env=environment, cwd=ROOT, start_new_session=True
            ))  # fmt: skip

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in self._processes:  # the shells first, which would start Ray again
            process.kill()
        for index in reversed(range(self._count)):
            name = f"{self._prefix}-{index}"
            inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in inside.split():
                subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", name], check=False)
        for process in self._processes:
            process.wait()
        subprocess.run(["ip", "link", "del", self._bridge], check=False)
        shutil.rmtree(self._sessions, ignore_errors=True)


def command_lines() -> list[bytes]:
    """Return the command lines of all processes, which every user of a machine can read."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return found


_COUNT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
print(sum(node["Alive"] for node in ray.nodes()))
"""


def _environment(variables: dict[str, str]) -> dict[str, str]:
    # `ray start` asks for a token where an earlier cluster of this user left one.
    fixed = {"RUNNER_STEPS_PATH": str(KINDS), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return {**os.environ, **fixed, **variables}


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)

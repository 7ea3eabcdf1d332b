"""A Ray cluster: started on this machine, or an existing one at an address; what it has, and whether it can compute.

ray is imported only here and in ray_executor, inside functions: it is an extra.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runner.errors import Diagnostic, MachineError, UsageError
from runner.execute import installation
from runner.plan import machine
from runner.plan.machine import MachineRefusal
from runner.plan.resources import Node, Offer, Processor
from runner.system.process_errors import first_line

_PORTS = {"ray": 10001, "": 6379}
_CONNECT_SECONDS = 5
_PROBE_SECONDS = 180  # for all machines together: each starts a process of Ray first
_KNOWN = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass(frozen=True)
class Finding:
    """What a probe found on one machine: `facts` of its installation, or why there is none in `error`.

    `has_store`: whether it sees the folder of the store. `remote_fault`: why it cannot use the remote store.
    `processor` is None where it could not be measured.
    """

    host: str
    facts: Mapping[str, str]
    error: str | None
    has_store: bool
    processor: Processor | None = None
    remote_fault: str | None = None


class RayCluster:
    """A connection to a Ray cluster. `address` None starts one on this machine, which `close` ends."""

    def __init__(self, address: str | None) -> None:
        self.address = address
        self._processors: dict[str, Processor] = {}
        self.name = f"the Ray cluster at {address}" if address else "Ray on this machine"
        if machine.package_version("ray") is None:
            raise MachineError("`--executor ray` needs the package ray, which is not installed",
                               "`pip install 'runner[ray]'`")  # fmt: skip
        if address is not None:
            _reach(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False, "ignore_reinit_error": False}
        try:
            if address is None:
                ray.init(address="local", num_cpus=machine.cpu_count(), include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if _wants_token(error):
                refused = f"{self.name} refuses this machine, which shows no token"
                raise _refused("R703", refused, _TOKEN_HELP) from error
            raise _refused("R703", f"{self.name} does not answer: {first_line(error)}", _ADDRESS_HELP) from error

    def offer(self) -> Offer:
        """Return the machines of the cluster, with the processors that `examine` measured."""
        import ray

        alive = [found for found in ray.nodes() if found["Alive"]]
        return Offer(self.name, tuple(_node(found, self._processors.get(found["NodeID"])) for found in alive))

    def examine(self, store: Path | None, remote: str | None = None) -> list[Finding]:
        """Probe every machine: what is installed, and whether it sees `store`, a folder, or the store at `remote`.

        Waits some minutes. Raises StoreError where this machine cannot write to the remote store.
        """
        from runner.execute import remote_probe  # here: it brings in the store

        if remote is None:
            return self._probe(store, None)
        with remote_probe.left(remote) as name:
            return self._probe(store, (remote, name))

    def _probe(self, store: Path | None, remote: tuple[str, str] | None) -> list[Finding]:
        import ray

        token = None
        if store is not None:
            store.mkdir(parents=True, exist_ok=True)
            token = store / f".probe-{secrets.token_hex(8)}"
            token.write_bytes(b"runner\n")
        try:
            asked = [(found, _ask(found["NodeID"], token, remote)) for found in ray.nodes() if found["Alive"]]
            until = time.monotonic() + _PROBE_SECONDS
            answers = [(found["NodeID"], _answer(found["NodeManagerHostname"], ref, until)) for found, ref in asked]
            self._processors |= {id: answer.processor for id, answer in answers if answer.processor is not None}
            return [answer for _, answer in answers]
        finally:
            if token is not None:
                token.unlink(missing_ok=True)

    def check(self, store: Path | None, remote: str | None = None) -> None:
        """Refuse a cluster whose machines have other versions, or cannot use the store: a folder, or a remote one."""
        if found := refusals(self.name, self.examine(store, remote), store):
            raise MachineRefusal(found)

    def close(self) -> None:
        """End the connection, and the cluster if it was started here."""
        import ray

        ray.shutdown()


_ADDRESS_HELP = "check it with `ray status`, start the cluster with `ray start --head`, or leave out `--address`"
_TOKEN_HELP = (
    "set RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN; an address other than "
    "`auto` is shown none by itself"
)
VERSIONS_HELP = "install there what is installed here, or submit from an environment like that of the cluster"
REMOTE_HELP = "its credentials and packages are those of each machine: set them where Ray is started there"
STORE_HELP = "use a jobs folder that all machines share (`--jobs`), or a remote store (`--remote`)"


def _wants_token(error: BaseException | None) -> bool:
    """Return whether Ray could not connect because a cluster with token authentication was shown none, or another."""
    while error is not None:
        if "AuthenticationError" in f"{type(error).__name__}: {error}":
            return True
        error = error.__cause__ or error.__context__
    return False


def wrong(findings: list[Finding]) -> list[str]:
    """Return what is wrong with installations, one clause for each machine that differs from this one."""
    found = []
    for finding in findings:
        if finding.error is not None:
            found.append(f"{finding.host} cannot run steps: {finding.error}")
        elif different := installation.differences(finding.facts):
            found.append(f"{finding.host} has {'; '.join(different)}")
    return found


def refusals(cluster: str, findings: list[Finding], store: Path | None) -> list[Diagnostic]:
    """Return why the machines of a cluster cannot compute with a store: a folder, or a remote one where it is None."""
    complaints = [Diagnostic("R704", f"{cluster}: {text}", VERSIONS_HELP) for text in wrong(findings)]
    sound = [finding for finding in findings if finding.error is None]
    if unseen := sorted({f.host for f in sound if not f.has_store}):
        text = f"the jobs folder {store and store.parent} is not the same folder on {', '.join(unseen)}"
        complaints.append(Diagnostic("R705", text, STORE_HELP))
    faults = sorted({f"{f.host} cannot use the remote store: {f.remote_fault}" for f in sound if f.remote_fault})
    return complaints + [Diagnostic("R857", text, REMOTE_HELP) for text in faults]


def _reach(address: str) -> None:
    """Raise where nobody listens at an address. `auto` is Ray's own search on this machine."""
    if address in ("auto", "local"):
        return
    url = urlsplit(address if "://" in address else f"//{address}")
    if url.scheme not in _PORTS or not url.hostname:
        raise UsageError(f"`{address}` is no address of a Ray cluster",
                         "write `auto`, `host:6379` or `ray://host:10001`")  # fmt: skip
    try:
        port = url.port or _PORTS[url.scheme]
        socket.create_connection((url.hostname, port), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = f"no Ray cluster answers at {address}: {reason[0].lower()}{reason[1:]}"
        raise _refused("R703", text, _ADDRESS_HELP) from None


def _refused(code: str, message: str, help: str) -> MachineRefusal:
    return MachineRefusal([Diagnostic(code, message, help)])


def _node(found: Mapping[str, Any], processor: Processor | None) -> Node:
    resources: Mapping[str, float] = found["Resources"]
    custom = {n: v for n, v in resources.items() if n not in _KNOWN and not n.startswith(("node:", "bundle_group"))}
    cpus, memory = int(resources.get("CPU", 0)), int(resources.get("memory", 0))
    return Node(cpus, memory, resources.get("GPU", 0.0), custom, processor, found["NodeID"])


def _ask(node: str, token: Path | None, remote: tuple[str, str] | None) -> Any:
    """Start the probe on one machine. `remote`: the URL of a store, and the name of a file in it.

    The probe is a local function, so that Ray sends its code: nothing need be installed.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def probe(path: str | None, remote: tuple[str, str] | None) -> tuple[Any, ...]:
        import os

        seen = path is None or os.path.exists(path)
        try:
            from runner.execute import installation, remote_probe
        except ImportError as error:
            return {}, f"runner is not installed there ({error})", seen, None, None
        fault = None if remote is None else remote_probe.fault(*remote)
        return installation.facts(), None, seen, installation.processor(), fault

    where = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(probe).options(num_cpus=0, scheduling_strategy=where, max_retries=0)
    return task.remote(str(token) if token is not None else None, remote)


def _answer(host: str, reference: Any, until: float) -> Finding:
    import ray

    try:
        facts, error, seen, measured, fault = ray.get(reference, timeout=max(0.0, until - time.monotonic()))
    except (ray.exceptions.RayError, TimeoutError) as failed:
        return Finding(host, {}, f"it does not answer ({first_line(failed)})", False)
    return Finding(host, facts, error, seen, Processor(*measured) if measured else None, fault)

"""Run one step on a machine of a cluster: make its inputs available there, and pass on the events of a worker.

With a shared folder, the paths of a request are those of every machine. With a remote store, each machine has a store
of its own: it pulls the inputs that it lacks, and pushes the result.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from runner.errors import MachineError, RunnerError, StoreError
from runner.execute import failures
from runner.execute.executor import Task
from runner.execute.messages import InputRef, Request
from runner.execute.process import WorkerDied, WorkerProcess
from runner.execute.requests import request
from runner.job.entries import Stage
from runner.job.remote import Remote
from runner.job.store import Store
from runner.model.checkpoint import adapter_config
from runner.model.source import hub, locate
from runner.plan import machine
from runner.progress.events import Event, make
from runner.steps import kinds

DIED = "worker_died"  # instead of a last event: the worker ended in the middle of the step
# Variables of the submitting process that steps need, none of which is secret. Credentials are set on each machine.
VARIABLES = (
    "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "RUNNER_OFFLINE", "RUNNER_STEPS_PATH",
    "RUNNER_TRUST_REMOTE_CODE",
)  # fmt: skip
TOKENIZER = "tokenizer"  # among the models of a shipment
_SMALL = 2**20
NODE_STORE = "RUNNER_NODE_STORE"


@dataclass(frozen=True)
class Shipment:
    """A step for another machine. `made_by`: the key of the step that made an input, by parameter.

    `models`: the source and commit of an input that a recipe names, by parameter; `adapted` has those that carry an
    adapter. `looks`: how the models and data files look on the submitting machine, by path. `remote` is the URL of the
    remote store where machines share no folder. `folder` is the working folder, to which relative paths refer.
    """

    request: Request
    made_by: Mapping[str, str]
    models: Mapping[str, tuple[str, str | None]]
    looks: Mapping[str, str]
    adapted: frozenset[str] = frozenset()
    remote: str | None = None
    folder: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


def variables() -> dict[str, str]:
    """Return the variables of this process that steps need."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def shipment(task: Task, remote: str | None) -> Shipment:
    """Return a task as another machine can run it; `remote` is the URL of the store that machines share, if any."""
    plan, step = task.run.plan, task.step
    asked = request(plan, step, task.entries, task.run.store.root, task.run.settings)
    given = plan.given()
    models = {name: (given[id].source, given[id].commit) for name, id in step.inputs.items() if id in given}
    models[TOKENIZER] = (plan.model.source, plan.model.commit)
    carrying = {id for id, model in given.items() if model.facts.adapter is not None}
    adapted = frozenset(name for name, id in step.inputs.items() if id in carrying)
    adapted |= {TOKENIZER} if plan.model.facts.adapter is not None else set()
    made_by = {name: plan.step(id).key for name, id in step.inputs.items() if id not in given}
    paths = {asked.tokenizer, *(asked.inputs[name].path for name in models if name in asked.inputs)}
    paths |= {file for ref in asked.data.values() for file in ref.files}
    looks = {path: look(Path(path)) for path in sorted(paths)}
    return Shipment(asked, made_by, models, looks, adapted, remote, os.getcwd(), variables())


def look(path: Path) -> str:
    """Return a hash of the names and sizes of a folder's files (or of one file), and of the bytes of small ones.

    Enough to notice that a path holds something else on another machine, without reading weights.
    """
    hashed = hashlib.sha256()
    inner = [*path.iterdir(), *(path / adapter_config.FOLDER).glob("*")] if path.is_dir() else [path]
    for file in sorted(inner):
        if file.is_file() and file.name[0] != ".":
            size = file.stat().st_size
            name = file.relative_to(path) if file != path else Path(file.name)
            hashed.update(f"{name.as_posix()} {size}\n".encode())
            if size <= _SMALL:
                hashed.update(file.read_bytes())
    return hashed.hexdigest()


class NodeStep:
    """One step on this machine. `begin` starts its worker; `events` are then polled until the last one."""

    def __init__(self, shipment: Shipment) -> None:
        self._shipment = shipment
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._worker: WorkerProcess | None = None

    def begin(self) -> str:
        """Start the worker, or send why it cannot start as the step's failure; return the name of this machine."""
        request = self._shipment.request
        os.environ.update(self._shipment.variables)
        try:
            _check_machine(request)
            request = self._located(request)
            log = Path(request.store) / ".staging" / f"{request.key}.worker.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            folder = self._shipment.folder if os.path.isdir(self._shipment.folder) else None
            self._worker = WorkerProcess(log, request.threads, folder=folder)
            self._worker.send(request)
            threading.Thread(target=self._read, args=(self._worker, request, log), daemon=True).start()
        except (RunnerError, OSError) as error:
            failure = failures.describe_exception(error, Path(request.store), Path("/nonexistent"))
            self._fail(failure.error, failure.help, failure.exit_code)
        return socket.gethostname()

    def events(self, seconds: float = 1.0) -> list[Event]:
        """Return the events since the last call; wait up to `seconds` for the first."""
        found: list[Event] = []
        deadline = time.monotonic() + seconds
        try:
            found.append(self._events.get(timeout=max(0.0, deadline - time.monotonic())))
            while True:
                found.append(self._events.get_nowait())
        except Empty:
            return found

    def stop(self) -> None:
        """Ask the worker to stop at the next safe point."""
        if self._worker is not None:
            self._worker.stop()

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()

    def _read(self, worker: WorkerProcess, request: Request, log: Path) -> None:
        try:
            for event in worker.events():
                if event["event"] == "step_started":
                    log = Stage.for_key(Path(request.store), request.key).log
                if event["event"] in ("step_finished", "step_cached"):
                    self._push(request)
                self._events.put(event)
        except WorkerDied as died:
            tail = failures.describe_exit(died.returncode, log)
            self._events.put({"event": DIED, "error": tail.error, "help": tail.help, "exit_code": tail.exit_code,
                              "log": str(log)})  # fmt: skip
        except (RunnerError, OSError) as error:  # of the push
            failure = failures.describe_exception(error, Path(request.store), log)
            self._fail(failure.error, failure.help, failure.exit_code)

    def _fail(self, error: str, help: str | None, exit_code: int) -> None:
        request = self._shipment.request
        about = {"step": request.index, "id": request.id, "kind": request.kind}
        self._events.put(make("step_failed", **about, error=error, help=help, exit_code=exit_code, log=None))

    def _located(self, request: Request) -> Request:
        """Return the request with the paths of this machine. MachineError or StoreError for what it does not have."""
        request = replace(request, store=str(self._store(request)))
        inputs = {name: self._input(request, name, ref) for name, ref in request.inputs.items()}
        for ref in request.data.values():
            for file in ref.files:
                self._check_look(Path(file), file)
        tokenizer = self._model(TOKENIZER, request.tokenizer)
        return replace(request, inputs=inputs, tokenizer=tokenizer)

    def _model(self, name: str, path: str) -> str:
        """Return the folder of a model here: the embedded one, the same path, or the Hub's at its commit."""
        source, commit = self._shipment.models[name]
        if source.startswith(locate.DEMO):
            return str(locate.demo_path("models", source.removeprefix(locate.DEMO)))
        if commit is not None and not Path(path).is_dir():
            return str(hub.download_model(source, commit, adapted=name in self._shipment.adapted))
        self._check_look(Path(path), path)
        return path

    def _check_look(self, path: Path, sent: str) -> None:
        """Raise MachineError for a path that is not here, or that holds something else than where it was planned."""
        if not path.exists():
            raise MachineError(f"{path} is not on {socket.gethostname()}", "put it where all machines see it")
        if look(path) != self._shipment.looks[sent]:
            raise MachineError(
                f"{path} holds other files on {socket.gethostname()} than on the machine that planned the step",
                "put it where all machines see the same",
            )

    def _store(self, request: Request) -> Path:
        if self._shipment.remote is not None:
            store = Store(node_store())
            store.prepare()
            return store.root
        if not (Path(request.store) / ".locks").is_dir():
            raise StoreError(
                f"the store {request.store} is not on {socket.gethostname()}",
                "use a jobs folder that all machines share (`--jobs`), or a remote store (`--remote`)",
            )
        return Path(request.store)

    def _input(self, request: Request, name: str, ref: InputRef) -> InputRef:
        if name in self._shipment.models:
            return replace(ref, path=self._model(name, ref.path))
        key = self._shipment.made_by[name]
        if self._shipment.remote is not None:
            entry = Remote(self._shipment.remote).pull(key, Store(Path(request.store)))
            if entry is None:
                raise StoreError(f"the result {key[:12]} is not in {self._shipment.remote}", "apply again")
            return replace(ref, path=str(entry.out))
        return ref

    def _push(self, request: Request) -> None:
        if self._shipment.remote is not None:
            entry = Store(Path(request.store)).entry(request.key)
            if entry is None:
                raise StoreError(
                    f"the result of `{request.id}` left the store of {socket.gethostname()}", "apply again"
                )
            Remote(self._shipment.remote).push(entry)


def _check_machine(request: Request) -> None:
    """Raise MachineError where this machine would make something else than what the key of the step names."""
    planned = request.key_inputs.get("environment", {})
    facts = machine.machine_facts(request.device)
    for name, here in kinds.environment(kinds.find(request.kind), request.params, facts).items():
        if planned.get(name, here) != here:
            raise MachineError(
                f"`{request.id}` was planned for other {name} than {socket.gethostname()} has, which decide its result",
                "name the processor with `resources: {processor: …}`, or submit from a machine like those that compute",
            )


def node_store() -> Path:
    """Return the store of this machine where machines share no folder: $RUNNER_NODE_STORE, or one in the cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get(NODE_STORE) or Path(cache) / "runner" / "store")

"""The worker: read requests from stdin and run them one after another (see runner.execute.messages).

Nothing a library prints reaches the terminal: descriptors 1 and 2 are the log of the running step. The process ends
with its parent, and ignores the signals that a terminal or a scheduler sends to all processes: the parent decides.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import queue
import signal
import threading
import time
from pathlib import Path
from typing import Any

from runner.contracts.planned_account import check_written
from runner.errors import Interrupted, StepFailed
from runner.execute import failures, messages
from runner.execute.messages import Request
from runner.execute.worker.context import StepContext, seed_everything
from runner.execute.worker.imports import import_libraries
from runner.execute.worker.step_log import StepLog
from runner.job import environment
from runner.job.entries import Stage, StoreEntry
from runner.job.records import Record
from runner.job.store import Store
from runner.model.checkpoint.headers import read_headers
from runner.progress.events import Event, encode, make
from runner.system import heap, parent_death, peak_memory


def main() -> None:
    events = os.dup(int(os.environ.get(messages.EVENTS_FD, "1")))
    requests = os.dup(0)
    silence = os.open(os.devnull, os.O_RDONLY)
    os.dup2(silence, 0)
    os.dup2(2, 1)
    faulthandler.enable()
    # The end of stdin ends the worker too, but not while C code holds the GIL.
    parent_death.die_with_parent(os.environ.get(messages.PARENT))
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            # A handler instead of SIG_IGN, which the processes that a step starts would inherit.
            signal.signal(getattr(signal, name), lambda *_: None)
    for name in ("SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):  # Slurm sends them to all processes of a batch job, also to those that a step starts
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    worker = Worker(events)
    threading.Thread(target=worker.read_messages, args=(requests,), daemon=True).start()
    while True:
        worker.serve(worker.requests.get())


class Worker:
    """Runs requests. `events` is the descriptor to write events to."""

    def __init__(self, events: int) -> None:
        self.requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._events = events
        self._stop = threading.Event()
        self._step: int | None = None
        self._writing = threading.Lock()

    def read_messages(self, fd: int) -> None:
        """Read messages from the parent; exit the process when it closes stdin."""
        with os.fdopen(fd, "rb") as file:
            for line in file:
                request = messages.decode(line)
                if request is None:
                    self._stop.set()
                    text = "stopping at the next safe point; a second Ctrl-C ends it at once"
                    self.send(make("message", step=self._step, level="info", text=text))
                else:
                    self.requests.put(request)
        os._exit(0)

    def send(self, event: Event) -> None:
        data = (encode(event) + "\n").encode()
        with self._writing:
            try:
                while data:
                    data = data[os.write(self._events, data) :]
            except BrokenPipeError:
                os._exit(0)

    def serve(self, request: Request) -> None:
        """Run one request to its last event."""
        self._step = request.index
        store = Store(Path(request.store))
        lock = store.lock(request.key, request.command)
        about = {"step": request.index, "id": request.id, "kind": request.kind}

        def on_wait(holder: object) -> None:
            self.send(make("waiting", step=request.index, holder=str(holder)))

        def warn(text: str) -> None:
            self.send(make("message", step=request.index, level="warning", text=text))

        log = Stage.for_key(store.root, request.key).log
        try:
            if not lock.acquire(on_wait=on_wait, stop=self._stop.is_set):
                raise Interrupted("stopped while waiting")
            entry = store.entry_locked(request.key, warn)
            if entry is not None:
                last = make("step_cached", **about, key=request.key, metrics=dict(entry.record.metrics))
            else:
                entry = store.finish(request.key) or self._compute(request, store)
                last = _finished(about, entry)
        except Interrupted:
            last = make("interrupted", step=request.index, resume=None)
        except BaseException as error:  # noqa: BLE001  a step may raise anything, SystemExit too
            failure = failures.describe_exception(error, store.root, log)
            last = make(
                "step_failed", **about, error=failure.error, help=failure.help, exit_code=failure.exit_code,
                log=str(log) if log.exists() else None,
            )  # fmt: skip
        finally:
            lock.release()
        self.send(last)

    def _compute(self, request: Request, store: Store) -> StoreEntry:
        stage = store.stage(request.key)
        with StepLog(stage.log):
            resumed, layers = store.partial(request.key) or (None, None)
            self.send(make(
                "step_started", step=request.index, id=request.id, kind=request.kind, key=request.key,
                resumed_at=resumed, layers=layers, unit=store.unit(request.key),
            ))  # fmt: skip
            peak_memory.reset_peak()
            started = time.perf_counter()
            import_libraries(request)
            kind = _kind(request)
            seed_everything(request)
            context = StepContext(request, stage, self.send, self._stop)
            context.safe_point()
            result = kind.run(context)
            if request.written:
                found = {name: header.shape for name, header in read_headers(stage.out).items()}
                check_written(request.written, found, request.unchanged, result.account)
            memory = peak_memory.peak()
            _release_memory()
            record = Record(
                key=request.key,
                key_inputs=request.key_inputs,
                kind=request.kind,
                kind_version=request.kind_version,
                id=request.id,
                recipe=request.recipe,
                seconds=round(time.perf_counter() - started, 3),
                memory=memory,
                metrics={name: _number(value) for name, value in result.metrics.items()},
                details={**result.details, **({"tensors": request.account} if request.account else {})},
                artifact_type=request.produces,
                inputs={name: ref.digest for name, ref in request.inputs.items()},
                environment=environment.facts(request.device, request.threads),
                resumed_at=resumed,
            )
            return store.commit(stage, record)


def _release_memory() -> None:
    """Free the memory of the finished step before the next one begins."""
    gc.collect()
    heap.trim()


def _kind(request: Request) -> Any:
    from runner.steps.kinds import find

    kind = find(request.kind)
    if request.kind_version != kind.VERSION:
        raise StepFailed(
            f"the plan was made for version {request.kind_version} of `{request.kind}`, the worker has {kind.VERSION}",
            "plan again: the installation changed meanwhile",
        )
    return kind


def _number(value: Any) -> float:
    """Return a plain int or float: numbers of numpy and torch are not JSON."""
    return value if type(value) is int else float(value)


def _finished(about: dict[str, Any], entry: StoreEntry) -> Event:
    record = entry.record
    return make(
        "step_finished", **about, key=record.key, digest=record.digest, seconds=record.seconds, memory=record.memory,
        metrics=dict(record.metrics),
    )  # fmt: skip

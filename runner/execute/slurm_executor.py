"""Steps on a Slurm cluster: each is a batch job with the step's resources, submitted by submitit.

A job writes its events to a file in the shared store, which the submitting process follows. A job that is preempted or
comes to its time limit gets SIGUSR2: it stops at a safe point and is queued again, and continues from its last layer.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import Diagnostic, MachineError
from runner.execute import node_step
from runner.execute.executor import Reports, Task
from runner.execute.node_step import NodeStep, Shipment
from runner.execute.remote_executor import Lost, RemoteExecutor
from runner.execute.slurm_queue import SlurmQueue
from runner.job import batch_jobs
from runner.job.batch_jobs import BatchJob
from runner.plan import machine, resources
from runner.plan.machine import MachineRefusal
from runner.plan.resources import Node, Offer, Processor, threads_of
from runner.progress.events import Event, encode

REQUEUED = "requeued"  # an event of a job that will start again
_POLL = 0.5  # seconds between looks at the file of events
_GRACE = 60  # seconds in which a job that must end stops at a safe point
_ANNOUNCED = 300  # seconds after SIGTERM in which Slurm ends a job
_ENDS = ("step_finished", "step_cached", "step_failed", "interrupted", node_step.DIED)
_NO_SLURM = "run this on a machine that submits to Slurm, or try jobs on this machine with `--slurm cluster=local`"


def offer(cluster: str) -> Offer:
    """Return the machines of the cluster; `cluster` "local" runs batch jobs as processes here, to try them."""
    if machine.package_version("submitit") is None:
        text = "`--executor slurm` needs the package submitit, which is not installed"
        raise MachineError(text, "`pip install 'runner[slurm]'`")
    if cluster != "slurm":
        return resources.of_this_machine(machine.machine_facts("cpu"))
    program = shutil.which("sinfo")
    if program is None or shutil.which("sbatch") is None:
        raise MachineRefusal([Diagnostic("R706", "there is no Slurm here: `sbatch` is not found", _NO_SLURM)])
    try:
        asked = [program, "-N", "-h", "-o", "%N %c %m %G %f"]
        listed = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        text = f"Slurm does not answer: {str(error).splitlines()[0]}"
        raise MachineRefusal([Diagnostic("R706", text, "check it with `sinfo`")]) from error
    return Offer("the Slurm cluster", nodes_of(listed))


def nodes_of(listed: str) -> tuple[Node, ...]:
    """Parse `sinfo -N -h -o "%N %c %m %G %f"`: processors, MiB, GPUs such as `gpu:a100:4(S:0-1)`, and features.

    A node is listed once for each of its partitions.
    """
    found = []
    for line in dict.fromkeys(listed.splitlines()):
        name, cpus, memory, gres, features = (*line.split(maxsplit=4), "", "")[:5]
        gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))
        classes = Processor("", classes=tuple(features.split(",")))  # what its features mean, Slurm does not say
        found.append(Node(int(cpus.rstrip("+")), int(memory.rstrip("+")) * 2**20, gpus, processor=classes, id=name))
    return tuple(found)


def make(reports: Reports, store: Path, given: Mapping[str, str], at_once: int | None = None) -> RemoteExecutor:
    """Return the executor. `given`: options of sbatch by name, and `cluster` ("slurm", or "local" for processes)."""
    given = {"cluster": "slurm", **given}
    queue = SlurmQueue() if given["cluster"] == "slurm" else None

    def attempt(task: Task, shipped: Shipment) -> BatchAttempt:
        return BatchAttempt(store / batch_jobs.FOLDER, queue, parameters(task, given), shipped)

    return RemoteExecutor(reports, attempt, None, at_once)


def parameters(task: Task, given: Mapping[str, str]) -> dict[str, Any]:
    """Return submitit's parameters of a step: what it asks for, and the options of sbatch that the user gave."""
    demand = task.demand
    cpus = demand.cpus or threads_of(task.step, task.run.settings.thread_count)
    found: dict[str, Any] = {"name": f"runner-{task.step.id}", "timeout_min": int(given.get("timeout_min", "1440"))}
    if given["cluster"] == "slurm":
        options = {f"slurm_{name}": value for name, value in given.items() if name not in ("cluster", "timeout_min")}
        found |= {"cpus_per_task": cpus, **options}
        if demand.memory:
            found["slurm_mem"] = f"{-(-demand.memory // 2**20)}M"
        if demand.alone:
            found["slurm_exclusive"] = True
        if demand.processor:
            found["slurm_constraint"] = demand.processor
    if demand.gpus:
        found["gpus_per_node"] = int(-(-demand.gpus // 1))
    return found


class BatchStep:
    """A step as a batch job: submitit calls it on the machine that Slurm chose, and `checkpoint` on SIGUSR2."""

    def __init__(self, shipment: Shipment, events: str) -> None:
        self.shipment = shipment
        self.events = events
        self._step: NodeStep | None = None
        self._is_ending = False

    def __call__(self) -> None:
        """Run the step to its end; stop it where the file `<events>.stop` appears."""
        step = self._step = NodeStep(self.shipment)
        self._write([{"event": "host", "host": step.begin()}])
        signal.signal(signal.SIGTERM, self._end_soon)
        asked = False
        while True:
            found = step.events(_POLL)
            self._write([event for event in found if not (self._is_ending and event["event"] == "interrupted")])
            if any(event["event"] in _ENDS for event in found):
                step.close()
                if self._is_ending and found[-1]["event"] == "interrupted":
                    self._await_end()
                return
            if not asked and os.path.exists(f"{self.events}.stop"):
                asked = True
                step.stop()

    def _end_soon(self, *_: object) -> None:
        """Stop at a safe point: Slurm ends this batch job soon, and queues it again where it was preempted."""
        self._is_ending = True
        if self._step is not None:
            self._step.stop()

    def _await_end(self) -> None:
        """Wait for the end that Slurm announced: a job that is to be queued again must not look like one that ended."""
        self._write([{"event": REQUEUED}])
        time.sleep(_ANNOUNCED)
        raise TimeoutError(f"SIGTERM came {_ANNOUNCED} seconds ago, and nothing ended this batch job")

    def checkpoint(self) -> Any:
        """Stop at a safe point within the grace time, and return the job that is queued again."""
        import submitit

        if self._step is not None:
            self._step.stop()
            deadline = time.monotonic() + _GRACE
            found: list[Event] = []
            while time.monotonic() < deadline and not any(event["event"] in _ENDS for event in found):
                found = self._step.events(_POLL)
                self._write([event for event in found if event["event"] != "interrupted"])
            self._step.kill()
        self._write([{"event": REQUEUED}])
        return submitit.helpers.DelayedSubmission(BatchStep(self.shipment, self.events))

    def _write(self, events: list[Event]) -> None:
        if events:
            with open(self.events, "a", encoding="utf-8") as file:
                file.write("".join(encode(event) + "\n" for event in events))


class BatchAttempt:
    """One batch job for a step (runner.execute.remote_executor.Attempt). Without `queue` it is a process here."""

    def __init__(self, folder: Path, queue: SlurmQueue | None, how: dict[str, Any], shipped: Shipment) -> None:
        self.host = "a machine of the cluster"
        self._folder, self._queue, self._how, self._shipped = folder, queue, how, shipped
        self._file = folder / f"{shipped.request.key[:16]}-{secrets.token_hex(4)}.jsonl"
        self._read = 0
        self._job: Any = None
        self._begun = self._has_ended = False

    def begin(self) -> None:
        import submitit

        self._folder.mkdir(parents=True, exist_ok=True)
        self._file.touch()
        executor = submitit.AutoExecutor(folder=self._folder / "%j", cluster="slurm" if self._queue else "local")
        executor.update_parameters(**self._how)
        try:
            self._job = executor.submit(BatchStep(self._shipped, str(self._file)))
        except (submitit.core.utils.FailedJobError, OSError) as error:
            lines = str(error).strip().splitlines()
            raise MachineError(f"Slurm refuses the job: {lines[-1] if lines else error}", "check the options of "
                               "`--slurm` with `sbatch --test-only`") from error  # fmt: skip
        asked = self._shipped.request
        batch_jobs.note(
            self._folder.parent, BatchJob(asked.key, asked.id, self._job.job_id, str(self._job.paths.stderr))
        )

    def events(self) -> list[Event]:
        ended = self._ended_as()
        found = self._new()
        if not found and ended:
            self._has_ended = True
            log = self._job.paths.stderr
            raise Lost(f"batch job {self._job.job_id} ended as {ended} (its log is {log})")
        if not found:
            time.sleep(_POLL)
        shown = []
        for event in found:
            if event["event"] == "host":
                self._begun, self.host = True, event["host"]
            elif event["event"] == REQUEUED:
                index, id = self._shipped.request.index, self._shipped.request.id
                text = f"`{id}`: batch job {self._job.job_id} has to end; it is queued again and continues"
                shown.append({"event": "message", "time": time.time(), "step": index, "level": "warning", "text": text})
                self._begun = False
            else:
                self._has_ended = event["event"] in _ENDS and event["event"] != node_step.DIED
                shown.append(event)
        return shown

    def _ended_as(self) -> str | None:
        """Return the state in which the batch job ended; None while it may go on."""
        if self._queue is not None:
            return self._queue.end_of(self._job.job_id)
        return str(self._job.state) if self._job.done(force_check=False) else None

    def ask_to_stop(self) -> bool:
        if self._begun:
            Path(f"{self._file}.stop").touch()
        return self._begun

    def end(self, *, at_once: bool) -> None:
        if self._job is not None and not self._has_ended:
            self._job.cancel(check=False)
        batch_jobs.forget(self._folder.parent, self._shipped.request.key)
        self._file.unlink(missing_ok=True)
        Path(f"{self._file}.stop").unlink(missing_ok=True)

    def _new(self) -> list[Event]:
        """Return the events that were written since the last call; a line that is not complete stays."""
        with open(self._file, "rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

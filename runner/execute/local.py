"""The executor of this machine: worker processes, started for the first steps that are computed and then reused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.errors import Interrupted
from runner.execute import capacity, failures
from runner.execute.capacity import Capacity, Share
from runner.execute.executor import Followers, Reports, Task
from runner.execute.process import WorkerDied, WorkerProcess
from runner.execute.requests import request
from runner.job.entries import Stage
from runner.plan.resources import threads_of
from runner.progress.events import make


@dataclass(frozen=True, eq=False)
class _Worker:
    """A worker process, and what it was started with: only tasks that need the same can use it again."""

    process: WorkerProcess
    log: Path
    threads: int
    gpus: tuple[tuple[str, float], ...]


class LocalExecutor:
    """An executor (runner.execute.executor) with up to `at_once` workers, within the `room` of this machine."""

    def __init__(self, reports: Reports, at_once: int = 1, room: Capacity | None = None) -> None:
        self._reports = reports
        self._at_once = at_once
        self._room = room or capacity.of_this_machine()
        self._followers = Followers(reports, at_once)
        self._running: dict[Task, tuple[_Worker, Share]] = {}
        self._idle: list[_Worker] = []

    def is_full(self) -> bool:
        return len(self._running) >= self._at_once or self._room.is_taken_alone

    def has_room(self, task: Task) -> bool:
        return not self.is_full() and self._room.has_room(task.demand)

    def start(self, task: Task) -> None:
        run = task.run
        asked = request(run.plan, task.step, task.entries, run.store.root, run.settings)
        share = self._room.take(task.demand)
        worker = self._worker(task, share)
        self._running[task] = worker, share
        if run.stopping.forced:
            worker.process.kill()
        elif run.stopping.asked:  # before the worker was started
            worker.process.stop()
        worker.process.send(asked)
        self._followers.follow(task, lambda task: self._follow(task, worker))

    def release(self, task: Task) -> None:
        worker, share = self._running.pop(task)
        self._room.give_back(share)
        if worker.process.is_usable:
            self._idle.append(worker)
        else:
            worker.process.close()

    def stop(self, tasks: Iterable[Task] | None = None) -> None:
        for task in list(self._running) if tasks is None else tasks:
            if task in self._running:
                self._running[task][0].process.stop()

    def kill(self) -> None:
        for worker, _ in list(self._running.values()):
            worker.process.kill()

    def close(self) -> None:
        for worker in [*self._idle, *(worker for worker, _ in self._running.values())]:
            worker.process.close()
        self._idle.clear()
        self._running.clear()
        self._followers.close()

    def _worker(self, task: Task, share: Share) -> _Worker:
        """Return an idle worker that was started as the task needs it, or a new one."""
        threads = threads_of(task.step, task.run.settings.thread_count)
        gpus = share.gpus if self._at_once > 1 else ()  # a single worker sees every GPU
        for worker in self._idle:
            if (worker.threads, worker.gpus) == (threads, gpus):
                self._idle.remove(worker)
                return worker
        while len(self._idle) + len(self._running) >= self._at_once:
            self._idle.pop(0).process.close()
        taken = {worker.log for worker, _ in self._running.values()} | {worker.log for worker in self._idle}
        log = task.run.directory.worker_log
        count = 1
        while log in taken:
            count += 1
            log = log.with_name(f"worker-{count}.log")
        variables = capacity.visible(share) if gpus else {}
        return _Worker(WorkerProcess(log, threads, variables), log, threads, gpus)

    def _follow(self, task: Task, worker: _Worker) -> int:
        """Report the events of a task; return its exit code. Runs in a thread of its own."""
        log = worker.log
        try:
            for event in worker.process.events():
                if event["event"] == "interrupted":
                    return Interrupted.exit_code
                if event["event"] == "step_started":
                    log = Stage.for_key(task.run.store.root, task.step.key).log
                self._reports.put((task, event))
                if event["event"] == "step_failed":
                    return int(event["exit_code"])
        except WorkerDied as died:
            if task.run.stopping.forced:
                return Interrupted.exit_code
            failure = failures.describe_exit(died.returncode, log)
            about = {"step": task.step.index, "id": task.step.id, "kind": task.step.kind}
            self._reports.put((task, make("step_failed", **about, **asdict(failure), log=str(log))))
            return failure.exit_code
        return 0

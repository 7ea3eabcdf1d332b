"""Walk the graph of steps of several jobs: take results from the store, hand what is ready to an executor.

A step that several jobs share has one key: one of them computes it, and the others take its result. Jobs and their
steps have priority in their order, so that one worker runs them one after another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from queue import Empty

from runner.errors import GateFailed, Interrupted, RunnerError
from runner.execute.executor import Ended, Executor, Reports, Task
from runner.execute.job_steps import JobSteps
from runner.execute.stopping import Stopping
from runner.plan.types import PlannedStep
from runner.progress.events import Event, make

_POLL = 0.1  # seconds between attempts to take the lock of a job that another process applies


class Scheduler:
    """Runs jobs with one executor. With `keep_going` False, the first job that fails stops all others.

    `timeout` is in seconds for each job, from its first step on; a job that takes longer stops at a safe point.
    """

    def __init__(
        self, jobs: Sequence[JobSteps], executor: Executor, reports: Reports, stopping: Stopping,
        keep_going: bool = True, timeout: float | None = None,
    ) -> None:  # fmt: skip
        self._jobs = jobs
        self._left = list(jobs)  # those that are not closed
        self._executor = executor
        self._reports = reports
        self._stopping = stopping
        self._keep_going = keep_going
        self._timeout = timeout
        self._tasks: dict[Task, JobSteps] = {}
        self._failures: dict[str, Event] = {}  # of steps by their keys
        self._deadlines: dict[JobSteps, float] = {}
        self._waits = False  # whether a job waits for another process
        self._ending = False

    def work(self) -> None:
        """Run every job to its end; its exit code and error are then in it."""
        self._stopping.on_ask, self._stopping.on_force = self._executor.stop, self._executor.kill
        try:
            self._start_what_is_ready()
            while self._tasks or (self._waits and not self._is_stopping):
                ended = self._receive()
                self._stop_late_jobs()
                if ended or self._waits:  # an event of a running step makes nothing ready
                    self._start_what_is_ready()
            for job in self._jobs:
                self._close(job)
        finally:
            self._stopping.on_ask = self._stopping.on_force = lambda: None
            self._executor.close()
            for job in self._jobs:  # where an exception ends all of them
                job.session.close(job.code or 1, job.memory)

    @property
    def _is_stopping(self) -> bool:
        return self._stopping.asked or self._ending

    def _start_what_is_ready(self) -> None:
        """Take results from the store and start tasks, in the order of the jobs, while there is room."""
        self._waits = False
        self._left = [job for job in self._left if not job.is_closed]
        for job in self._left:
            if self._is_stopping or self._executor.is_full():
                return
            if job.is_ended:
                continue
            try:
                if job.session.is_open or self._open(job):
                    self._advance(job)
                    self._waits = self._waits or (job.waits_elsewhere and not job.is_ended)
                else:
                    self._waits = True
            except (RunnerError, OSError) as error:
                job.broken(error)
            self._close_if_ended(job)

    def _open(self, job: JobSteps) -> bool:
        opened = job.session.try_open()
        if opened and self._timeout is not None:
            self._deadlines[job] = time.monotonic() + self._timeout
        return opened

    def _advance(self, job: JobSteps) -> None:
        """Take or start every step of a job that is ready, and those that become ready by results in the store."""
        advanced = True
        while advanced:
            advanced = False
            for step in job.ready():
                if self._is_stopping or job.is_ended or self._executor.is_full():
                    return
                if self._consider(job, step):
                    advanced = True
                    break

    def _consider(self, job: JobSteps, step: PlannedStep) -> bool:
        """Return whether the step is done; where it is not, start it if there is room and no other job computes it."""
        computing = next((task for task in self._tasks if task.step.key == step.key), None)
        if computing is not None:
            job.wait_for(step, f"the same step of {computing.run.plan.job_id}")
            return False
        entry = job.find(step)
        if entry is not None:
            job.take_cached(step, entry)
            return True
        if step.key in self._failures:  # it would fail again
            failure = {**self._failures[step.key], "step": step.index, "id": step.id}
            job.receive(failure)
            job.failed(step, int(failure["exit_code"]))
            return False
        task = job.task(step)
        if self._executor.has_room(task) and job.claim(step):
            try:
                job.record_environment()  # before a worker that might fill the disk
                self._executor.start(task)
            except (RunnerError, OSError):
                job.release(step)
                raise
            self._tasks[task] = job
            job.started(step)
            if self._stopping.asked:
                self._executor.stop()
        return False

    def _receive(self) -> bool:
        """Handle one report of the executor, and return whether a task ended.

        Where a job waits or has a deadline, a report is awaited for a short time only.
        """
        try:
            task, report = self._reports.get(timeout=_POLL if self._waits or self._deadlines else None)
        except Empty:
            return False
        job = self._tasks[task]
        if isinstance(report, Ended):
            del self._tasks[task]
            self._executor.release(task)
            self._end(job, task.step, report)
            self._close_if_ended(job)
            return True
        # A missed gate is no failure of the step: other jobs may have other gates.
        if report["event"] == "step_failed" and report["exit_code"] != GateFailed.exit_code:
            self._failures[task.step.key] = report
        job.receive(report)
        return False

    def _end(self, job: JobSteps, step: PlannedStep, ended: Ended) -> None:
        try:
            if ended.error is not None:
                raise ended.error
            if ended.code == Interrupted.exit_code:
                job.interrupted(step)
            elif ended.code:
                job.failed(step, ended.code)
            else:
                job.finished(step)
        except (RunnerError, OSError) as error:
            job.broken(error, step)
        finally:
            job.release(step)

    def _stop_late_jobs(self) -> None:
        now = time.monotonic()
        for job in [job for job, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[job]
            if not job.is_ended:
                job.timed_out = True
                self._executor.stop([task for task, owner in self._tasks.items() if owner is job])
                self._close_if_ended(job)

    def _close_if_ended(self, job: JobSteps) -> None:
        """Close a job of which nothing runs or will run; stop the others where it failed and they are not to go on."""
        if not job.is_ended or job.is_running or job.is_closed:
            return
        self._close(job)
        self._deadlines.pop(job, None)
        if job.code and not self._keep_going and not self._ending:
            self._ending = True
            self._executor.stop()

    def _close(self, job: JobSteps) -> None:
        """Write what the job made, or say how it goes on, and release it."""
        if job.is_closed:
            return
        job.is_closed = True
        session = job.session
        if job.error is None and job.code in (0, GateFailed.exit_code) and (job.is_done or job.code):
            try:
                session.finish(job.entries, job.code)
            except (RunnerError, OSError) as error:
                job.broken(error)
        elif job.error is None and job.code == 0:
            job.code = self._interrupt(job)
        session.close(job.code, job.memory)

    def _interrupt(self, job: JobSteps) -> int:
        """Send how an unfinished job goes on, and return its exit code. One that never began sends nothing."""
        session, at = job.session, job.stopped_at.index if job.stopped_at else None
        if session.is_open or session.is_waiting:
            if self._stopping.timed_out or job.timed_out:
                text = "the time limit is over: stopped at a safe point"
                session.run.send(make("message", step=at, level="warning", text=text))
            session.run.send(make("interrupted", step=at, resume=session.run.settings.command))
        return self._stopping.exit_code if self._stopping.asked else Interrupted.exit_code

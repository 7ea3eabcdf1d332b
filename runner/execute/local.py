"""The executor of this machine: one worker process for all steps, started for the first one that is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from runner.errors import Interrupted
from runner.execute import failures
from runner.execute.job_run import JobRun
from runner.execute.process import WorkerDied, WorkerProcess
from runner.execute.requests import request
from runner.job.entries import Stage, StoreEntry
from runner.plan.types import PlannedStep
from runner.progress.events import make


class LocalExecutor:
    """An executor (runner.execute.executor) for one run of a job."""

    def __init__(self, run: JobRun) -> None:
        self.memory = 0
        self._run = run
        self._worker: WorkerProcess | None = None

    def compute(self, step: PlannedStep, entries: Mapping[str, StoreEntry]) -> int:
        run = self._run
        asked = request(run.plan, step, entries, run.store.root, run.settings)
        worker = self._started()
        if run.stopping.forced:
            worker.kill()
        elif run.stopping.asked:  # before the worker was started
            worker.stop()
        log = run.directory.worker_log
        try:
            for event in worker.run(asked):
                self.memory = max(self.memory, event.get("memory") or 0)
                if event["event"] == "interrupted":
                    return Interrupted.exit_code
                if event["event"] == "step_started":
                    log = Stage.for_key(run.store.root, step.key).log
                run.send(event)
                if event["event"] == "step_failed":
                    return int(event["exit_code"])
        except WorkerDied as died:
            if run.stopping.forced:
                return Interrupted.exit_code
            return self._died(step, died, log)
        return 0

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def _started(self) -> WorkerProcess:
        if self._worker is None:
            run = self._run
            self._worker = WorkerProcess(run.directory.worker_log, run.settings.thread_count)
            run.stopping.on_ask, run.stopping.on_force = self._worker.stop, self._worker.kill
            run.write_environment()  # while it starts
        return self._worker

    def _died(self, step: PlannedStep, died: WorkerDied, log: Path) -> int:
        failure = failures.describe_exit(died.returncode, log)
        facts = asdict(failure)
        self._run.send(make("step_failed", step=step.index, id=step.id, kind=step.kind, **facts, log=str(log)))
        return failure.exit_code

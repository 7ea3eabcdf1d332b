"""Apply a plan on this machine: reuse what is in the store, resume what was interrupted, compute the rest."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from runner.api.jobs import Job
from runner.api.plans import JobPlan
from runner.errors import GateFailed, Interrupted, MachineError, RunnerError, StepFailed, UsageError
from runner.execute import application
from runner.execute.application import End, Manner
from runner.execute.executor import Maker
from runner.execute.settings import ApplySettings
from runner.execute.stopping import Stopping
from runner.job.remote import Remote
from runner.model.architecture import remote_code
from runner.progress.board import Board, StepBoard, gate_text, is_missed
from runner.progress.events import Event, Sink

Callback = Callable[[Event], None]
ENDED = 130  # by ^C


def apply(
    plan: JobPlan,
    *,
    on_event: Callback | None = None,
    threads: int | None = None,
    timeout: float | None = None,
    wait: bool = True,
    remote: str | None = None,
    check: bool = True,
) -> Job:
    """Apply a plan, and return its job, done with every gate passed. Downloads models that are not on this machine.

    `on_event` is called with every event as it happens (dicts, see runner/progress/events.py); an exception in it ends
    the job and is raised here. `threads` is the number of threads to compute with (default: one for each core). After
    `timeout` seconds, or ^C in the main thread, the job stops at the first safe point; applying the same plan again
    goes on there. With `wait` False, a plan that another process applies raises Interrupted. `remote` is the URL of a
    store to share steps with.

    Raises GateFailed for a missed quality gate, StepFailed or MachineError for a failed step, Interrupted for a stop
    before the end. With `check` False these are no errors: the job is returned, and its `status` says how it ended.
    Finished steps stay in the store in any case; `Job(plan.job_id, plan.jobs)` opens the job.

    Raises, before anything is computed, StoreError or MachineError where the jobs folder cannot be written, UsageError
    for a recipe with a `search`, for a gate that refers to a job that is not there and for `timeout` in another thread
    than the main one, and Interrupted where `wait` is False and another process applies the plan.
    """
    if not isinstance(plan, JobPlan):
        raise TypeError(f"apply() takes a plan, as `runner.plan(recipe)` returns it; got {plan!r}")
    if plan.plan.recipe.search is not None:
        file = plan.plan.recipe.file
        raise UsageError(f"{file} has a `search`, and a plan is of one job", f"`runner apply {file}` runs the search")
    if timeout is not None and threading.current_thread() is not threading.main_thread():
        raise UsageError("`timeout` works only in the main thread, where signals arrive", "call `apply` there")
    planned = plan.with_models()
    command = shlex.join(["runner", "apply", plan.plan.recipe.file])
    settings = ApplySettings(command, threads, wait, Remote(remote) if remote else None)
    board = Board()
    sinks: list[Sink] = [board, *([callback(on_event)] if on_event is not None else [])]
    code = run(planned, settings, sinks=sinks, stopping=Stopping(timeout))
    if code and check:
        _raise(plan, board, code)
    return Job(plan.job_id, plan.jobs)


def run(
    plan: JobPlan,
    settings: ApplySettings,
    *,
    sinks: Sequence[Sink],
    stopping: Stopping,
    executor: Maker | None = None,
) -> int:
    """Apply a plan whose models are on this machine, and return the exit code where `apply` raises for a failed step.

    Events go to `sinks`, which the caller closes; `stopping` may ask for a stop, and records who asked. `executor`
    makes the executor, by default that of this machine.
    """
    remote_code.allow(plan.trust_remote_code)
    return application.apply(
        plan.plan, plan.preview, settings, jobs_root=plan.jobs, sinks=sinks, stopping=stopping, executor=executor
    )


def run_all(
    plans: Sequence[JobPlan],
    settings: ApplySettings,
    *,
    sinks: Sequence[Sequence[Sink]],
    stopping: Stopping,
    manner: Manner,
) -> list[End]:
    """Apply plans of one jobs folder with one executor: steps that are ready run at once, shared ones once.

    `sinks` are those of each plan. Returns how each ended, in order.
    """
    remote_code.allow(any(plan.trust_remote_code for plan in plans))
    jobs = [application.Job(plan.plan, plan.preview, own) for plan, own in zip(plans, sinks, strict=True)]
    return application.apply_all(jobs, settings, jobs_root=plans[0].jobs, stopping=stopping, manner=manner)


def callback(call: Callback) -> Sink:
    """Return a function as a sink."""
    return _Callback(call)


class _Callback:
    """A function as a sink. It is not called again once it raised, so that the job can still record how it ended."""

    def __init__(self, call: Callback) -> None:
        self._call: Callback | None = call

    def send(self, event: Event) -> None:
        call, self._call = self._call, None
        if call is not None:
            call(event)
            self._call = call

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _raise(plan: JobPlan, board: Board, code: int) -> NoReturn:
    """Raise the error of an exit code, with the details from the events."""
    help = f"`runner report {plan.job_id}` shows what its steps did"
    if code == GateFailed.exit_code:
        missed = [(step.id, gate) for step in board.steps.values() for gate in step.gates if is_missed(gate)]
        raise GateFailed("; ".join(f"step `{id}`: {gate_text(gate)}" for id, gate in missed), help)
    if code in (Interrupted.exit_code, ENDED):
        raise Interrupted(f"job `{plan.job_id}` stopped before its end", "apply the same plan again: it goes on there")
    failed = next((step for step in board.steps.values() if step.failure is not None), None)
    if failed is None:
        raise StepFailed(f"job `{plan.job_id}` ended with exit code {code}", help)
    raise _failure(failed, code)


def _failure(step: StepBoard, code: int) -> RunnerError:
    event = step.failure or {}
    message, help = f"step `{step.id}` failed: {event.get('error')}", event.get("help")
    return MachineError(message, help) if code == MachineError.exit_code else StepFailed(message, help)

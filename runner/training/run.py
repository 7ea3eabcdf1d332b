"""Train, as called by a step's `run`: `prepare` writes the inputs of the processes, `fit` trains and resumes.

A single process trains in the worker; several are started on this machine (runner.training.launch).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.contracts.context import Context, Params
from runner.errors import Diagnostic, Interrupted, RecipeError
from runner.training import launch, session, training_checkpoints
from runner.training.check import too_few
from runner.training.task import Fitted, Task, settings
from runner.training.trainer import Hooks

if TYPE_CHECKING:
    import torch

__all__ = ["fit", "prepare"]


def prepare(ctx: Context, build: str, arguments: Mapping[str, Any], *, params: Params | None = None) -> Task:
    """Return the task of a training on the step's `data` and `evaluation`, written to its scratch folder.

    `params` are those of the step by default. RecipeError where the data has no window, or fewer than a batch.
    """
    own = ctx.params if params is None else params
    folder = ctx.scratch_dir / "training"
    folder.mkdir(parents=True, exist_ok=True)
    ids = ctx.data("data")
    if not len(ids):
        message = "`data` has no full window of text to train on"
        raise RecipeError([Diagnostic("R464", message, "use a longer text, or lower its `sequence_length`")])
    found = settings(own, len(ids), ids.shape[1])
    if len(ids) < found.batch_size:
        raise RecipeError([too_few(len(ids), found.batch_size)])
    evaluation = None
    if own.get("evaluation") is not None:
        evaluation = write_windows(folder / "evaluation.npy", ctx.data("evaluation"))
    return Task(
        build=build,
        arguments=arguments,
        settings=found,
        ids=write_windows(folder / "data.npy", ids),
        evaluation=evaluation,
        folder=folder,
        seed=ctx.seed,
        device=ctx.device,
        threads=ctx.threads,
        processes=ctx.processes,
    )


def write_windows(path: Path, ids: torch.Tensor) -> Path:
    """Write token ids [windows, length] as .npy, int64, atomically; return the path."""
    unfinished = path.with_name(f".{path.name}")
    np.save(unfinished, ids.cpu().numpy().astype(np.int64))
    unfinished.replace(path)
    return path


def fit(ctx: Context, task: Task) -> Fitted:
    """Train from the last complete training checkpoint; a finished training is not repeated.

    Raises Interrupted after a step with everything saved, StepFailed for a NaN or infinite loss, naming the last good
    state, and MachineError where memory runs out, naming what to lower.
    """
    found = session.finished(task)
    if found is not None:
        return found
    progress = ctx.out_dir.parent / "progress.json"
    if task.processes > 1:
        launch.run(ctx, task, progress)
    else:
        _train_in_process(ctx, task, progress)
    found = session.finished(task)
    if found is None:
        raise RuntimeError(f"training ended without a result in {task.folder}")
    return found


def _train_in_process(ctx: Context, task: Task, progress: Path) -> None:
    """Train in this process."""
    asked: list[Interrupted] = []

    def stop() -> bool:
        try:
            ctx.safe_point()
        except Interrupted as error:
            asked.append(error)
        return bool(asked)

    def saved(step: int) -> None:
        training_checkpoints.write_progress(progress, step, task.settings.steps)

    hooks = Hooks(lambda fields: ctx.emit("train", **fields), stop, saved)
    if not session.train(task, hooks) and asked:
        raise asked[0]

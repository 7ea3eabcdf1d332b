"""The training in one process: build, resume, train, and write the result last."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from runner.errors import StepFailed
from runner.system import process_errors
from runner.training import failures, training_checkpoints
from runner.training.task import Fitted, Task, Trainable
from runner.training.trainer import FitTrainer, Hooks

_RESULT = "fitted.json"
_WEIGHTS = "weights.safetensors"


def finished(task: Task) -> Fitted | None:
    """Return the result of a finished training with this task, or None."""
    try:
        found = json.loads((task.folder / _RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if found.get("label") != label(task) or not (task.folder / _WEIGHTS).exists():
        return None
    return Fitted(task.folder / _WEIGHTS, found["metrics"], found["details"])


def label(task: Task) -> dict[str, Any]:
    """Return as JSON what must be equal for a training checkpoint to be resumed."""
    about = {"build": task.build, "arguments": dict(task.arguments), "settings": asdict(task.settings)}
    plain: dict[str, Any] = json.loads(json.dumps({**about, "seed": task.seed}))
    return plain


def train(task: Task, hooks: Hooks) -> bool:
    """Train to the end, or until `hooks.stop`; return whether it reached the end and wrote the result.

    StepFailed for a NaN or infinite loss, MachineError where memory runs out.
    """
    windows = np.load(task.ids, mmap_mode="r")
    trainer: FitTrainer | None = None
    task.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with deterministic_session(task):
        try:
            trainable = build(task)
            evaluation = None if task.evaluation is None else np.load(task.evaluation, mmap_mode="r")
            trainer = FitTrainer(task, trainable, windows, evaluation, hooks, label(task))
            path = trainer.resume()
            torch.manual_seed(task.seed + trainer.args.process_index)
            if not trainer.exhausted():
                trainer.train(resume_from_checkpoint=str(path) if path else None)
            if trainer.stopped:
                return False
            _write_result(trainer, time.perf_counter() - began)
        except (RuntimeError, MemoryError) as error:
            if not failures.is_memory(error):
                raise
            step = trainer.state.global_step if trainer is not None else None
            what = process_errors.first_line(error)
            raise failures.out_of_memory(task, windows.shape[1], what, step) from error
    return True


def build(task: Task) -> Trainable:
    """Call the task's builder; trained parameters become float32."""
    module, _, name = task.build.partition(":")
    torch.manual_seed(task.seed)
    trainable: Trainable = getattr(importlib.import_module(module), name)(task.arguments, own_device(task))
    parameters = training_checkpoints.trained(trainable.model)
    if not parameters:
        raise StepFailed("nothing is left to train: no parameter of the model takes a gradient")
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    if task.settings.gradient_checkpointing:
        checkpoint_activations(trainable.model)
    return trainable


def own_device(task: Task) -> str:
    """Return the device of this process; each of several has its own GPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if task.device == "cuda" else task.device


def checkpoint_activations(model: nn.Module) -> None:
    """Enable activation checkpointing in the first transformers model inside `model`."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, "gradient_checkpointing_enable") and hasattr(module, "config"):
            enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            return


@contextmanager
def deterministic_session(task: Task) -> Iterator[None]:
    """Use deterministic kernels on a GPU, and reset accelerate's global state afterwards."""
    from accelerate.state import AcceleratorState, GradientState

    deterministic = torch.are_deterministic_algorithms_enabled()
    if task.device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def _write_result(trainer: FitTrainer, seconds: float) -> None:
    """Write the weights of the best evaluated state, or of the last one, then metrics and details."""
    task, curve = trainer.task, trainer.curve
    weights = trainer.trained_weights() if curve.best_step is None else {}
    if not trainer.is_world_process_zero():
        return
    if curve.best_step is None:
        training_checkpoints.write_weights(task.folder / _WEIGHTS, weights)
    else:
        unfinished = task.folder / f".{_WEIGHTS}.copy"
        shutil.copyfile(training_checkpoints.best(task.folder, curve.best_step), unfinished)
        unfinished.replace(task.folder / _WEIGHTS)
    a_step = task.settings.batch_size * trainer.windows.shape[1]
    metrics: dict[str, float] = {"loss": curve.smoothed, "steps": curve.step, "tokens": curve.step * a_step}
    if curve.evaluations:
        metrics["evaluation_loss"] = curve.best_loss
    if trainer.steps_run:
        metrics["tokens_per_second"] = trainer.steps_run * a_step / seconds
    details: Mapping[str, Any] = {
        "curve": curve.points,
        "evaluations": curve.evaluations,
        "kept": curve.step if curve.best_step is None else curve.best_step,
    }
    training_checkpoints.write_json(
        task.folder / _RESULT, {"label": label(task), "metrics": metrics, "details": details}
    )
    clean(task.folder)


def clean(folder: Path) -> None:
    """Remove the files that only an unfinished training needs."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    for path in folder.glob("best-*.safetensors"):
        path.unlink()

"""transformers.Trainer with our order of windows, losses, checkpoints and events.

Overridden are the source of batches, the loss, the work after a step (evaluation, best state, atomic training
checkpoints, stopping), and the check before the optimizer (a NaN or infinite loss or gradient stops the training).
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from runner.training import failures, training_checkpoints
from runner.training.arguments import arguments, autocast_context
from runner.training.curve import Curve
from runner.training.evaluation import loss_sum
from runner.training.measure import peak_memory
from runner.training.sampler import evaluation_batches, micro_batches, order
from runner.training.task import Batch, Task, Trainable

_EVENTS = 2000  # at most, of one training; but slow steps emit one each
_LONGEST_PAUSE = 1.0  # seconds between events after which every step emits one
_RECENT = 50  # steps over which the speed is averaged


@dataclass(frozen=True)
class Hooks:
    """The callbacks of a training. Only the first of several processes has real ones.

    `emit` gets the fields of a `train` event; `stop` returns whether to end at this step; `saved` gets the step of a
    training checkpoint that was written.
    """

    emit: Callable[[Mapping[str, Any]], None]
    stop: Callable[[], bool]
    saved: Callable[[int], None]


class FitTrainer(Trainer):
    """The trainer of a task. `windows`, `evaluation`: [n, length] int64, memory-mapped; `label`: that of checkpoints.

    After `train`, `stopped` is whether a stop was requested, and `curve` has the measurements.
    """

    loss_is_scaled_for_ga = False  # a loss is the mean of its forward

    def __init__(
        self,
        task: Task,
        trainable: Trainable,
        windows: np.ndarray[Any, np.dtype[np.int64]],
        evaluation: np.ndarray[Any, np.dtype[np.int64]] | None,
        hooks: Hooks,
        label: Mapping[str, Any],
    ) -> None:
        self.task, self.trainable, self.windows, self.evaluation = task, trainable, windows, evaluation
        self.hooks, self.label = hooks, label
        self.curve = Curve(task.settings.steps)
        self.stopped = False
        self.autocast_context = autocast_context(task)
        self.steps_run = 0
        self.loss_sum: torch.Tensor | float = 0.0
        self.part_sums: dict[str, torch.Tensor] = {}
        self.measured: dict[str, float] = {}
        self.parts: dict[str, float] = {}
        self.handled = -1
        self.saved_at: int | None = None
        self.times: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self.emitted_at = -math.inf
        super().__init__(model=trainable.model, args=arguments(task, evaluation is not None), train_dataset=windows)
        self.remove_callback(PrinterCallback)

    @property
    def micro(self) -> int:
        """The number of windows of one forward."""
        settings = self.task.settings
        return settings.batch_size // (settings.accumulation * self.task.processes)

    @property
    def last_saved(self) -> Path | None:
        return None if self.saved_at is None else training_checkpoints.checkpoint(self.task.folder, self.saved_at)

    def resume(self) -> Path | None:
        """Return the training checkpoint to resume from, and restore its curve; None to start at the beginning."""
        path = training_checkpoints.last(self.task.folder, self.label)
        if path is not None:
            self.curve = training_checkpoints.read_curve(path)
            self.saved_at = training_checkpoints.step_of(path)
        return path

    def exhausted(self) -> bool:
        """Return whether `patience` evaluations in a row were no better."""
        patience = self.task.settings.patience
        return patience is not None and self.curve.stale >= patience

    def get_train_dataloader(self) -> DataLoader[Any]:
        settings = self.task.settings
        rows = order(len(self.windows), settings.steps * settings.batch_size, self.task.seed)
        batches = micro_batches(
            rows, settings.batch_size, settings.accumulation, self.task.processes, self.args.process_index
        )
        dataset: Any = range(len(self.windows))
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self._collate)

    def _collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {"ids": torch.from_numpy(np.array(self.windows[rows])), "rows": torch.tensor(rows)}

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """Return the context for the full loss, not only the model's forward, whose outputs accelerate would widen."""
        return self.autocast_context()

    def compute_loss_context_manager(self) -> Any:
        return self.autocast_context()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, parts = self.trainable.loss(model, Batch(inputs["ids"], inputs["rows"]))
        share = 1 / self.task.settings.accumulation
        self.loss_sum = self.loss_sum + loss.detach().double() * share
        for name, value in parts.items():
            self.part_sums[name] = self.part_sums.get(name, 0) + value.detach().double() * share
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Check loss and gradient norm; the base class calls this with a step's accumulated gradients."""
        norm: Any = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        full = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self._measure(float(full))
        return norm

    def _measure(self, norm: float) -> None:
        names = sorted(self.part_sums)
        asked = self.is_world_process_zero() and self.hooks.stop()
        own = [float(self.loss_sum), *(float(self.part_sums[name]) for name in names)]
        *means, memory, stop = self._sum([value / self.task.processes for value in own] + [
            float(peak_memory(self.args.device)), float(asked)
        ])  # fmt: skip
        self.measured = {"loss": means[0], "memory": memory, "stop": stop}
        self.parts = dict(zip(names, means[1:], strict=True))
        self.loss_sum, self.part_sums = 0.0, {}
        for what, value in (("loss", means[0]), ("length of the gradient", norm)):
            if not math.isfinite(value):
                self._diverged(what, value, self.state.global_step + 1)

    def _diverged(self, what: str, value: float, step: int) -> None:
        rate = self._get_learning_rate()
        raise failures.diverged(what, value, step, rate, self.task.settings, self.last_saved)

    def _sum(self, values: list[float]) -> list[float]:
        """Return the sums over all processes."""
        if self.task.processes == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        distributed.all_reduce(tensor)
        found: list[float] = tensor.tolist()
        return found

    def _maybe_log_save_evaluate(self, *args: Any, learning_rate: float | None = None, **kwargs: Any) -> None:
        """Do the work after an optimizer step; the base class calls it once more at the end of the data."""
        step, settings = self.state.global_step, self.task.settings
        if step == self.handled or not self.measured:
            return
        self.handled = step
        self.steps_run += 1
        self.trainable.stepped(step)
        loss, rate = self.measured["loss"], learning_rate or 0.0
        self.curve.add(step, loss, rate, self.parts)
        last = step == settings.steps
        evaluated = None
        due = step >= settings.evaluate_from and (step % settings.evaluate_every == 0 or last)
        if self.evaluation is not None and due:
            evaluated = self.evaluate_state()
        ends = last or self.exhausted()
        if ends:
            self.curve.point(rate, self.parts)
        self.stopped = bool(self.measured["stop"]) and not ends
        if not ends and (step % settings.save_every == 0 or self.stopped):
            self.save_training()
        self._emit_step(step, loss, rate, evaluated)
        self.control.should_training_stop = ends or self.stopped

    def _emit_step(self, step: int, loss: float, rate: float, evaluated: float | None) -> None:
        settings, now = self.task.settings, time.perf_counter()
        self.times.append((now, step))
        every = -(-settings.steps // _EVENTS)
        if evaluated is None and step % every and step != settings.steps and now - self.emitted_at < _LONGEST_PAUSE:
            return
        self.emitted_at = now
        began, first = self.times[0]
        seconds = (now - began) / (step - first) if step > first else None
        tokens = settings.batch_size * self.windows.shape[1]
        self.hooks.emit({
            "at": step, "of": settings.steps, "loss": loss, "learning_rate": rate,
            "tokens_per_second": tokens / seconds if seconds else None,
            "seconds_left": (settings.steps - step) * seconds if seconds is not None else None,
            "memory": int(self.measured["memory"]), "evaluation": evaluated, "parts": self.parts,
        })  # fmt: skip

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the initial state, so that the result is never worse; a resumed training has this already."""
        if not self.curve.evaluations and not self.task.settings.evaluate_from:
            self.evaluate_state()
        return {}

    def evaluate_state(self) -> float:
        """Return the loss on the evaluation windows; add it to the curve, and save the best state."""
        step = self.state.global_step
        loss = self.evaluation_loss()
        if not math.isfinite(loss):
            self._diverged("evaluation loss", loss, step)
        if self.curve.add_evaluation(step, loss):
            weights = self.trained_weights()
            if self.is_world_process_zero():
                training_checkpoints.write_weights(training_checkpoints.best(self.task.folder, step), weights)
        return loss

    def evaluation_loss(self) -> float:
        """Return the mean next-token cross entropy over the L − 1 targets of every evaluation window, in nats."""
        if self.evaluation is None:
            return math.nan
        batches = evaluation_batches(len(self.evaluation), self.micro, self.task.processes, self.args.process_index)
        with self.autocast_context():
            sums, targets = loss_sum(self.model, self.evaluation, batches, self.args.device)
        total, count = self._sum([sums, float(targets)])
        return total / count

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """Return every trained parameter on the CPU. Sharded ones are gathered, so all processes must call it."""
        weights = {}
        for name, parameter in training_checkpoints.trained(self.trainable.model).items():
            tensor = parameter.detach()
            full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            # A copy: FSDP resizes the storage of what it gathered, which numpy's view of it would forbid.
            weights[name] = full.to("cpu", copy=self.is_fsdp_enabled)
        return weights

    def save_training(self) -> None:
        """Write a training checkpoint of this step; its marker is written last."""
        path = training_checkpoints.checkpoint(self.task.folder, self.state.global_step)
        main = self.is_world_process_zero()
        if main:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        weights = self.trained_weights()
        self._barrier()
        if main:
            training_checkpoints.write_weights(path / f"{training_checkpoints.TRAINED}.safetensors", weights)
            self.state.save_to_json(str(path / "trainer_state.json"))
        self._save_optimizer_and_scheduler(str(path))
        self._save_rng_state(str(path))
        self._barrier()
        if main:
            training_checkpoints.seal(path, self.label, self.curve)
            self.hooks.saved(self.state.global_step)
        self.saved_at = self.state.global_step

    def _barrier(self) -> None:
        if self.task.processes > 1:
            distributed.barrier()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save optimizer and scheduler. With FSDP, the base class would also write the model with frozen weights."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from accelerate.utils import save_fsdp_optimizer

        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save and self.lr_scheduler is not None:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the trained parameters; the frozen ones come from the builder."""
        weights: dict[str, Any] = training_checkpoints.read_weights(
            Path(resume_from_checkpoint) / f"{training_checkpoints.TRAINED}.safetensors"
        )
        if self.is_fsdp_enabled:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            options = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(model, weights, options=options)
        else:
            with torch.no_grad():
                for name, parameter in training_checkpoints.trained(self.trainable.model).items():
                    parameter.copy_(weights[name])
        self.trainable.stepped(training_checkpoints.step_of(Path(resume_from_checkpoint)))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log nothing: `train` events have these values."""

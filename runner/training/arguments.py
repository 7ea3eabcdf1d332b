"""Convert a task's settings to transformers' TrainingArguments, and choose the precision of forward and loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import TrainingArguments

from runner.system.cpu import fast_bf16
from runner.training.task import Task


def arguments(task: Task, evaluates: bool) -> TrainingArguments:
    """Return the TrainingArguments of a task; the base class itself logs, saves and reports nothing."""
    settings = task.settings
    schedule = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    sharded: dict[str, Any] = {}
    if settings.fsdp:
        config = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT"}
        sharded = {"fsdp": True, "fsdp_config": config}
    found = TrainingArguments(
        output_dir=str(task.folder),
        use_cpu=task.device == "cpu",
        per_device_train_batch_size=settings.batch_size // (settings.accumulation * task.processes),
        gradient_accumulation_steps=settings.accumulation,
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        eval_strategy="no",
        eval_on_start=evaluates,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # else every forward would send packed integers, which are buffers
        seed=task.seed % 2**32,
        **sharded,
    )
    found._n_gpu = min(found.n_gpu, 1)  # else several visible GPUs would make it a DataParallel
    return found


def autocast_context(task: Task) -> Callable[[], AbstractContextManager[Any]]:
    """Return a factory of the context that forward and loss run in: autocast to bf16, or none."""
    if computes_bf16(task.device, task.settings.precision):
        return lambda: torch.autocast(task.device.partition(":")[0], torch.bfloat16)
    return nullcontext


def computes_bf16(device: str, precision: str) -> bool:
    """Return whether a training computes in bf16: `precision` is bf16, or auto on hardware with fast bf16."""
    if precision != "auto":
        return precision == "bf16"
    return torch.cuda.is_bf16_supported(including_emulation=False) if device.startswith("cuda") else fast_bf16()

"""Distillation from cached teacher logits: the Trainable of `distill.logits`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.training import losses
from runner.training.load_model import load
from runner.training.losses import Mix
from runner.training.task import Batch
from runner.training.teacher_cache import Cached
from runner.training.zero_masks import Masks


@dataclass(frozen=True)
class Distillation:
    """L = α · L_hard + (1 − α) · T² · D over the windows in `cached`."""

    model: nn.Module
    cached: Cached
    mix: Mix
    masks: Masks

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        teacher = self.cached.rows(batch.rows).to(batch.ids.device)
        logits = model(input_ids=batch.ids, use_cache=False).logits
        loss, hard, soft = losses.mixed(logits, batch.ids, teacher, self.mix)
        return loss, {"text": hard, "teacher": soft}

    def stepped(self, step: int) -> None:
        self.masks.apply()


def build(arguments: Mapping[str, Any], device: str) -> Distillation:
    """Build the Trainable. `arguments`: student and cache (folders), alpha, temperature, divergence."""
    model = load(Path(arguments["student"]), device, torch.float32)
    mix = Mix(arguments["alpha"], arguments["temperature"], arguments["divergence"])
    return Distillation(model, Cached(Path(arguments["cache"])), mix, Masks(model))

"""Gradual pruning: a model whose sparsity grows during training. Built by every training process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.methods.pruning_masks import UNSTRUCTURED, magnitude_mask
from runner.methods.sparsity_schedule import Schedule
from runner.model.layerwise.streamed_model import StreamedModel
from runner.training.load_model import load
from runner.training.objectives.recovery import Recovery, recovery
from runner.training.task import Batch


class GradualPruning:
    """Training with masks that grow on a schedule; weights that are zero at the beginning stay zero.

    A resumed training finds its masks in the zeros of the restored state.
    """

    def __init__(self, recovery: Recovery, weights: list[nn.Parameter], schedule: Schedule) -> None:
        self.model = recovery.model
        self._recovery, self._weights, self._schedule = recovery, weights, schedule
        self._keep: list[torch.Tensor] = []

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        self._begin()
        return self._recovery.loss(model, batch)

    @torch.no_grad()
    def stepped(self, step: int) -> None:
        """Set masked weights to zero; where the schedule moves, also mask more of the remaining ones."""
        self._begin()
        moves, sparsity = self._schedule.moves(step), self._schedule.sparsity(step)
        for index, weight in enumerate(self._weights):
            weight.masked_fill_(~self._keep[index], 0)
            if moves:
                self._keep[index] &= magnitude_mask(weight, sparsity, UNSTRUCTURED)
                weight.masked_fill_(~self._keep[index], 0)

    def _begin(self) -> None:
        """Set the masks, at the first forward or right after a state was restored."""
        if not self._keep:
            self._keep = [weight.detach() != 0 for weight in self._weights]


def build(arguments: Mapping[str, Any], device: str) -> GradualPruning:
    """Build the Trainable.

    `arguments`: those of `recovery`, checkpoint (a folder), targets (stored module names), schedule (its fields).
    """
    folder = Path(arguments["checkpoint"])
    model = load(folder, device, torch.float32)
    streamed = StreamedModel(folder)
    targets = {f"{name}.weight" for name in arguments["targets"]}
    weights = [parameter for name, parameter in model.named_parameters() if streamed.stored_name(name) in targets]
    return GradualPruning(recovery(model, arguments), weights, Schedule(**arguments["schedule"]))

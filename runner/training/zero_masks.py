"""Preserve the zeros of a pruned checkpoint while its weights are trained."""

from __future__ import annotations

import torch
from torch import nn

HELD = 0.05  # a weight with at least this part of exact zeros was pruned: no training leaves so many by chance


class Masks:
    """The current zeros of every pruned linear weight of a model; `apply` restores them.

    They take one byte per weight of the pruned modules; nothing for a model that was not pruned.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = [
            (weight, weight.detach() == 0)
            for module in model.modules()
            if not isinstance(module, nn.Embedding)
            and isinstance(weight := getattr(module, "weight", None), nn.Parameter)
            and weight.ndim == 2
            and _is_pruned(weight)
        ]

    def __len__(self) -> int:
        """Return the number of masked weights."""
        return len(self._held)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the weights that were zero to zero."""
        for weight, zeros in self._held:
            weight.masked_fill_(zeros, 0)


def _is_pruned(weight: torch.Tensor) -> bool:
    return weight.numel() - int(weight.detach().count_nonzero()) >= HELD * weight.numel()

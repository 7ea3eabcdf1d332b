"""Measure next-token cross entropy on evaluation windows, during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


@torch.no_grad()
def loss_sum(
    model: Any,
    windows: np.ndarray[Any, np.dtype[np.int64]],
    batches: Sequence[tuple[int, int, bool]],
    device: torch.device,
) -> tuple[float, int]:
    """Return Σ −log p(target) in nats, and the number of targets, over (begin, end, counts) of windows [n, length].

    The model is called as `model(input_ids=..., use_cache=False).logits`, in evaluation mode; the
    logits of one window at a time are in float32.
    """
    sums, targets = 0.0, 0
    with evaluating(model):
        for begin, end, counts in batches:
            ids = torch.from_numpy(np.array(windows[begin:end])).to(device)
            logits = model(input_ids=ids, use_cache=False).logits
            if counts:
                for row, own in zip(logits, ids, strict=True):
                    sums += float(functional.cross_entropy(row[:-1].float(), own[1:], reduction="sum"))
                    targets += len(own) - 1
    return sums, targets


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode inside the context."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)

"""The mean loss of windows of token ids, as `evaluate.perplexity` counts it. Stands alone: it needs numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def mean_loss(windows: Sequence[Sequence[int]], logits: Callable[[list[int]], Any]) -> float | None:
    """Return the mean loss over all tokens that follow another in a window; None without windows.

    `logits` gives the logits [n, V] of the n tokens of a window.
    """
    losses = [_loss(window, np.asarray(logits(list(window)))) for window in windows]
    return float(np.mean(losses)) if losses else None


def _loss(window: Sequence[int], logits: Any) -> float:
    total = 0.0
    for start in range(0, len(window) - 1, 64):
        targets = np.asarray(window[start + 1 : start + 65])
        rows = logits[start : start + len(targets)].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        total += float((np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(targets)), targets]).sum())
    return total / (len(window) - 1)

"""Confidence intervals of means by the bootstrap: studentized, paired by the caller's differences. Fixed seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 4999
_SEED = 0
_CHUNK = 2**21  # values drawn at a time


def interval(
    values: Sequence[float], confidence: float, *, ends: Sequence[float] = (), resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the two-sided interval of the mean that `values`, drawn independently, are samples of.

    The bootstrap-t of Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 12.5: quantiles of
    (mean* − mean) / error* over resamples give the bounds mean − q · error, which are right also where values are
    skewed. Of answers, which are right or wrong, few may differ, and error* is then often 0: for those `ends` are
    values to add, after Agresti and Coull (1998) and Agresti and Min (2005), and the bounds are quantiles of mean*, so
    that equal answers have an interval too.
    Two values at least are needed: fewer give an endless interval.
    """
    import numpy as np

    found = np.asarray(values, dtype=np.float64)
    if found.size < 2 or not np.isfinite(found).all():
        return -math.inf, math.inf
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    if ends:
        means, _ = _resampled(np.concatenate([found, ends]), resamples)
        low, high = np.quantile(means, tails)
        return float(low), float(high)
    mean, error = float(found.mean()), float(found.std(ddof=1)) / math.sqrt(found.size)
    if error == 0:
        return mean, mean
    means, errors = _resampled(found, resamples)
    ratios = np.where(errors > 0, (means - mean) / np.where(errors > 0, errors, 1), np.sign(means - mean) * np.inf)
    below, above = np.quantile(ratios, tails, method="nearest")
    return mean - float(above) * error, mean - float(below) * error


def _resampled(values: np.ndarray[Any, Any], count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the mean and its standard error of every resample."""
    import numpy as np

    draw = np.random.default_rng(_SEED)
    rows = max(1, _CHUNK // values.size)
    means, errors = [], []
    for start in range(0, count, rows):
        drawn = values[draw.integers(values.size, size=(min(rows, count - start), values.size))]
        means.append(drawn.mean(axis=1))
        errors.append(drawn.std(axis=1, ddof=1) / math.sqrt(values.size))
    return np.concatenate(means), np.concatenate(errors)

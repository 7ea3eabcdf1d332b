"""How far the output of a layer is from another one, relative to what the layer adds to its input."""

from __future__ import annotations

import math

import torch


def relative_change(found: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    """Return ‖found − expected‖ ∕ ‖scale‖, computed in float64; for a layer's output the scale is f(x) − x.

    It is 0 where nothing changed, also of a scale of zeros; infinite where anything did then, and where it is not a
    number.
    """
    size, change = float(scale.double().norm()), float((found.double() - expected.double()).norm())
    share = change / size if size > 0 else float(change > 0) and math.inf
    return math.inf if math.isnan(share) else share

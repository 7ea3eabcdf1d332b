"""Which modules are linear, and how wide they are."""

from __future__ import annotations

from torch import nn


def widths(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear module; (0, 0) of any other."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2:
        return 0, 0
    out_features, in_features = weight.shape
    return (in_features, out_features) if is_conv1d(module) else (out_features, in_features)


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear module, which keeps its weight as [in, out]."""
    return type(module).__name__ == "Conv1D"


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)

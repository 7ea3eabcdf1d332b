"""The floating types that a checkpoint is stored in and computed in."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from runner.contracts.facts import TensorHeader
from runner.model.checkpoint.stored_types import main_type
from runner.system.cpu import fast_bf16


def stored_dtype(headers: Mapping[str, TensorHeader]) -> torch.dtype:
    """The type that most weights of a checkpoint are stored in."""
    dtype: torch.dtype = getattr(torch, main_type(headers.values()))
    return dtype


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every value of one floating type is one of another, so that converting there and back changes none."""
    return torch.promote_types(wide, narrow) == wide


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """What the forward runs in: the stored type where the hardware multiplies it fast, float32 elsewhere."""
    if device.type != "cpu":
        return stored
    if stored == torch.bfloat16 and fast_bf16():
        return torch.bfloat16
    return torch.float32

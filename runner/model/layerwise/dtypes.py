"""The floating types that a checkpoint is stored in and computed in."""

from __future__ import annotations

from typing import Any

import torch

from runner.system.cpu import fast_bf16


def stored_dtype(config: Any) -> torch.dtype:
    dtype = getattr(config, "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """What the forward runs in: the stored type where the hardware multiplies it fast, float32 elsewhere."""
    if device.type != "cpu":
        return stored
    if stored == torch.bfloat16 and fast_bf16():
        return torch.bfloat16
    return torch.float32

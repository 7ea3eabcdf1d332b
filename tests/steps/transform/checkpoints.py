"""Tiny checkpoints whose norms and biases are not the ones and zeros of a fresh model, and their logits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from tests import model_types, tiny
from tests.host import Host


def save(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a checkpoint of an architecture of `tests.tiny`, or of a model type of transformers, with random norms."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if name in tiny.ARCHITECTURES:
        values = tiny.ARCHITECTURES[name] | changes
        config = AutoConfig.for_model(values.pop("model_type", name), **values)
    else:
        config = model_types.config(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        elif parameter.ndim == 2:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    model.config.dtype = dtype
    model.to(dtype).save_pretrained(folder)
    return folder


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of transformers' own forward, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def distance(was: torch.Tensor, now: torch.Tensor) -> float:
    return float((now - was).norm() / was.norm())


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def step(folder: Path, kind: str, checkpoint: Path, stop_after: int | None = None, **params: Any) -> Host:
    """Return a host for a rewrite of a checkpoint, with calibration data where the kind takes it."""
    ids = None if kind == "transform.rotate" else tiny.tokens()
    return Host(folder, kind, checkpoint, ids, stop_after, **params)

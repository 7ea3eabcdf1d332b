"""Training checkpoints on disk: which are complete, which are removed, and the weights of the best state.

<folder>/checkpoint-00000120/   trained.safetensors, optimizer, scheduler, generators, curve.json
                                complete.json, written last: a folder without it is incomplete
<folder>/best-00000100.safetensors   the trained weights of the best evaluated step
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from runner.model.checkpoint.writer import CheckpointWriter
from runner.training.curve import Curve

if TYPE_CHECKING:
    from torch import nn

MARKER = "complete.json"
TRAINED = "trained"  # the part that holds the trained weights


def checkpoint(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:08d}"


def best(folder: Path, step: int) -> Path:
    return folder / f"best-{step:08d}.safetensors"


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2].partition(".")[0])


def last(folder: Path, label: Mapping[str, Any]) -> Path | None:
    """Return the latest complete training checkpoint that was made with `label`, or None."""
    for path in sorted(folder.glob("checkpoint-*"), reverse=True):
        try:
            found = json.loads((path / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if found == label:
            return path
    return None


def write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file atomically: float32 tensors by name; equal tensors give equal bytes."""
    CheckpointWriter(path.parent).add(path.name.removesuffix(".safetensors"), weights)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(path)
    return found


def seal(path: Path, label: Mapping[str, Any], curve: Curve) -> None:
    """Mark a checkpoint as complete, then remove older ones, and states that are no longer the best."""
    write_json(path / "curve.json", curve.to_json())
    for file in sorted(path.iterdir()):
        _sync(file)
    _sync(path)
    write_json(path / MARKER, dict(label))
    _sync(path.parent)
    for other in path.parent.glob("checkpoint-*"):
        if other != path:
            shutil.rmtree(other)
    for other in path.parent.glob("best-*.safetensors"):
        if step_of(other) != curve.best_step:
            other.unlink()


def read_curve(path: Path) -> Curve:
    return Curve.from_json(json.loads((path / "curve.json").read_text(encoding="utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically, with fsync."""
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(value, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def trained(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trained parameters by their name in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_progress(path: Path, step: int, steps: int) -> None:
    """Write progress.json, from which `runner plan` reads where an interrupted training resumes."""
    write_json(path, {"layer": step, "layers": steps, "unit": "step"})

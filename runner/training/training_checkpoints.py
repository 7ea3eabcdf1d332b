"""Training checkpoints on disk: which of them count, which are removed, and the weights of the best state.

<folder>/checkpoint-00000120/   trained.safetensors, optimizer, scheduler, generators, curve.json
                                complete.json, written last: without it the folder is what a kill left
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
    """The latest complete training checkpoint that was made with `label`, or None."""
    for path in sorted(folder.glob("checkpoint-*"), reverse=True):
        try:
            found = json.loads((path / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if found == label:
            return path
    return None


def write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file that appears whole: float32 tensors by name; equal tensors give equal bytes."""
    CheckpointWriter(path.parent).add(path.name.removesuffix(".safetensors"), weights)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(path)
    return found


def seal(path: Path, label: Mapping[str, Any], curve: Curve) -> None:
    """Make a checkpoint count, then remove what it makes needless: older ones, and states that are best no more."""
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
    return Curve.of_json(json.loads((path / "curve.json").read_text(encoding="utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file at once, synced."""
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(value, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def trained(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by their name in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_progress(path: Path, step: int, steps: int) -> None:
    """What `runner plan` reads to say where an interrupted training goes on."""
    write_json(path, {"layer": step, "layers": steps, "unit": "step"})

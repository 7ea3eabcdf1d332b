"""A format of engines for tests: a checkpoint under another name."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from runner.runtime.transformers import Transformers


def open(folder: Path, device: str, threads: int | None) -> Transformers:
    return Transformers(folder, device, torch.float32)


def make(folder: Path) -> Path:
    """Let the checkpoint in `folder` pass for an engine."""
    (folder / "engine.json").write_text(json.dumps({"format": "copied"}))
    return folder

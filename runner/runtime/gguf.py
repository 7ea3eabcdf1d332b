"""Open a folder of the format "gguf": one GGUF file, which engine.json names."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from runner.errors import StepFailed
from runner.runtime.protocol import Runtime


def open(folder: Path, device: str, threads: int | None) -> Runtime:
    """Return the runtime of the GGUF file in `folder`. StepFailed where it is missing or cannot be read."""
    from runner.runtime.transformers import Gguf

    name = str(json.loads((folder / "engine.json").read_text(encoding="utf-8")).get("file"))
    if not (folder / name).is_file():
        raise StepFailed(f"`{folder}` has no `{name}`, which its engine.json names", "build it again")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return Gguf(folder, name, device)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise StepFailed(f"`{folder / name}` cannot be read: {error}", "build it again") from error

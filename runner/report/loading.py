"""Code and commands that load or run a job's output."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from runner.model.architecture import supported
from runner.model.checkpoint.headers import model_config
from runner.model.checkpoint.quantization import compressed_tensors_config

_USUAL = supported.auto_class("")


def line(output: Path) -> str:
    """Return one line that loads a checkpoint (with its adapter) in Python, or generates text with an engine.

    Its paths are absolute, so that it works in any folder.
    """
    path = os.path.abspath(output)
    if (output / "engine.json").exists():
        return f'runner generate {shlex.quote(path)} "def "'
    name = supported.auto_class(model_config(output).model_type) if (output / "config.json").is_file() else _USUAL
    load = f'from transformers import {name}; model = {name}.from_pretrained({path!r}, dtype="auto")'
    if (output / "adapter" / "adapter_config.json").exists():
        late = compressed_tensors_config.unpacks_late(model_config(output).quantization or {})
        unpack = "model(**model.dummy_inputs); " if late else ""  # in its first forward
        return f"{load}; {unpack}model.load_adapter({os.path.join(path, 'adapter')!r})"
    return load


def checkpoint(output: Path) -> Path | None:
    """Return the folder of the last checkpoint of a job whose output is an engine; None for any other job."""
    if not (output / "engine.json").exists():
        return None
    made = sorted(output.parent.glob("steps/*-*/out"), reverse=True)
    return next((f for f in made if (f / "config.json").exists() and not (f / "engine.json").exists()), None)

"""What loads or runs what a job made."""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def line(output: Path) -> str:
    """One line for this installation, whatever the working folder: Python that loads a checkpoint (with its adapter),

    or the command that lets an engine write.
    """
    path = os.path.abspath(output)
    if (output / "engine.json").exists():
        return f'runner generate {shlex.quote(path)} "def "'
    load = (
        "from transformers import AutoModelForCausalLM; "
        f'model = AutoModelForCausalLM.from_pretrained({path!r}, dtype="auto")'
    )
    if (output / "adapter" / "adapter_config.json").exists():
        return f"{load}; model.load_adapter({os.path.join(path, 'adapter')!r})"
    return load


def checkpoint(output: Path) -> Path | None:
    """Where the output of a job is an engine: the folder of the last checkpoint that the job made, if it made one."""
    if not (output / "engine.json").exists():
        return None
    made = sorted(output.parent.glob("steps/*-*/out"), reverse=True)
    return next((f for f in made if (f / "config.json").exists() and not (f / "engine.json").exists()), None)

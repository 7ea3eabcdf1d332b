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

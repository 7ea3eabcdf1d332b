"""The Python that loads what a job made."""

from __future__ import annotations

import os
from pathlib import Path


def line(output: Path) -> str:
    """One line that works when pasted into a Python of this installation, whatever its working folder."""
    path = os.path.abspath(output)
    return (
        "from transformers import AutoModelForCausalLM; "
        f'model = AutoModelForCausalLM.from_pretrained({path!r}, dtype="auto")'
    )

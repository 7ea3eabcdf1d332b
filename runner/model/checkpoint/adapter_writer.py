"""Writes an adapter into the folder of its checkpoint. No torch at the top, as steps import it while planning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint.adapter_config import CONFIG, FOLDER, PREFIX, WEIGHTS

if TYPE_CHECKING:
    import torch


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the adapter of the checkpoint in `folder`; `tensors` by module and kind: "model.…q_proj.lora_A.weight"."""
    from runner.model.checkpoint.writer import CheckpointWriter

    parts = CheckpointWriter(folder / FOLDER)
    parts.add(WEIGHTS.removesuffix(".safetensors"), {PREFIX + name: tensor for name, tensor in tensors.items()})
    text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
    (folder / FOLDER / CONFIG).write_text(text, encoding="utf-8")

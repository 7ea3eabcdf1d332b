"""Load a full checkpoint for training; packed weights stay packed.

Elsewhere one layer is in memory at a time; training needs all of them, because the gradient passes through all layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.streamed_model import StreamedModel
from runner.model.layerwise.whole_model import load_dense
from runner.training.modules import packed_linear


def load(folder: Path, device: str | torch.device, dtype: torch.dtype) -> Any:
    """Load the transformers model of a checkpoint on `device`, in `dtype`, without a cache of keys and values.

    Linear modules that the checkpoint stores packed become `PackedLinear`, which computes in the type of its input.
    Their parameters require no gradient; all others do. Raises what `StreamedModel` raises.
    """
    with CheckpointReader(folder) as reader:
        is_packed = reader.packing is not None
    model = (
        _packed(folder, torch.device(device), dtype) if is_packed else load_dense(folder, torch.device(device), dtype)
    )
    model.config.use_cache = False
    return model


def _packed(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Build the model empty, replace packed linear modules, and read all other tensors one by one."""
    streamed = StreamedModel(folder, str(device), dtype)
    model: Any = streamed.model
    names = [name for name, module in model.named_modules() if hasattr(module, "weight") and streamed.is_packed(name)]
    for name in names:
        streamed.load_module(name, ("bias",))
        old = model.get_submodule(name)
        bias = getattr(old, "bias", None)
        new = packed_linear.PackedLinear(packed_linear.read(streamed.reader, streamed.stored_module(name)), bias, dtype)
        model.set_submodule(name, new.to(device))
    for name, _ in list(model.named_modules()):
        streamed.load_module(name)
    streamed.reader.close()
    model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] not in names)
    return model

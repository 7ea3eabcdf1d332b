"""The Trainables of recovery steps: adapters on a frozen checkpoint, or the scales of a packed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from runner.model.checkpoint.headers import read_headers
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.dtypes import stored_dtype
from runner.training import losses
from runner.training.arguments import computes_bf16
from runner.training.load_model import load
from runner.training.losses import Mix
from runner.training.modules import lora
from runner.training.modules.packed_linear import PackedLinear
from runner.training.task import Batch
from runner.training.teacher_cache import Cached

SCALE = ".scale_change"
NORM = ".parametrizations.weight.original"


@dataclass(frozen=True)
class Recovery:
    """Next-token cross entropy where `cached` is None, else α · L_hard + (1 − α) · T² · KL to the cached teacher."""

    model: nn.Module
    cached: Cached | None
    mix: Mix

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        logits = model(input_ids=batch.ids, use_cache=False).logits
        if self.cached is None:
            return losses.next_token(logits[:, :-1], batch.ids[:, 1:]), {}
        teacher = self.cached.rows(batch.rows).to(batch.ids.device)
        loss, hard, soft = losses.mixed(logits, batch.ids, teacher, self.mix)
        return loss, {"text": hard, "teacher": soft}

    def stepped(self, step: int) -> None:
        """Do nothing: frozen weights need no mask, and masked adapters preserve zeros."""


def recovery(model: nn.Module, arguments: Mapping[str, Any]) -> Recovery:
    """Build the loss. `arguments`: cache (a folder, or None), distill_alpha, temperature."""
    cached = None if arguments["cache"] is None else Cached(Path(arguments["cache"]))
    return Recovery(model, cached, Mix(arguments["distill_alpha"], arguments["temperature"], "forward"))


def adapters(arguments: Mapping[str, Any], device: str) -> Recovery:
    """Build the Trainable of adapters.

    `arguments`, besides those of `recovery`: checkpoint (a folder), precision, adapter (its adapter_config.json), and
    hold_packed_zeros as in `lora.wrap`.
    """
    model = _loaded(arguments, device)
    wrapped = lora.wrap(model, arguments["adapter"], hold_packed_zeros=arguments["hold_packed_zeros"])
    return recovery(wrapped, arguments)


def scales(arguments: Mapping[str, Any], device: str) -> Recovery:
    """Build the Trainable of scales, and of norms if `norms` is set.

    `arguments`, besides those of `recovery`: checkpoint (a folder), precision, norms. The scales are trained as in
    `PackedLinear`. The weights of norms are float32 under a parametrization that rounds them to the type they are
    stored in: the model computes with what will be written.
    """
    folder = Path(arguments["checkpoint"])
    model = _loaded(arguments, device).requires_grad_(False)
    with CheckpointReader(folder) as reader:
        names = [name for name, module in model.named_modules() if arguments["norms"] and is_norm(module)]
        for name in names:
            module = model.get_submodule(name)
            stored = reader.dtype(f"{name}.weight") if reader.has(f"{name}.weight") else module.weight.dtype
            rounded = Rounded(stored, module.weight.dtype)
            module.weight = nn.Parameter(module.weight.detach().float())
            parametrize.register_parametrization(module, "weight", rounded, unsafe=True)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.train_scales()
    return recovery(model, arguments)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalization with a weight per channel, by the name of its class."""
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and isinstance(weight, nn.Parameter) and weight.ndim == 1


class Rounded(nn.Module):
    """Rounds a weight to its stored type, in the type the model computes in, with a straight-through gradient."""

    def __init__(self, stored: torch.dtype, dtype: torch.dtype) -> None:
        super().__init__()
        self.stored, self.dtype = stored, dtype

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(self.stored).to(self.dtype)


def _loaded(arguments: Mapping[str, Any], device: str) -> Any:
    folder = Path(arguments["checkpoint"])
    return load(folder, device, frozen_dtype(folder, device, arguments["precision"]))


def frozen_dtype(folder: Path, device: str, precision: str) -> torch.dtype:
    """Return the type of frozen weights in memory: bfloat16 where they are stored and computed in it, else float32."""
    stored = stored_dtype(read_headers(folder))
    return torch.bfloat16 if stored == torch.bfloat16 and computes_bf16(device, precision) else torch.float32

"""Adapters on a loaded model, by peft: LoRA, rsLoRA and DoRA, over dense, pruned and packed weights.

Only the adapters are trained, in float32. Over a pruned weight the branch acts under its mask in training too, so that
merging under the mask gives the same model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

from runner.model.checkpoint import adapter_config
from runner.training.modules.expert_lora import replace_wrappers
from runner.training.modules.lora_math import adapted_weight, computing, is_pruned, product, row_norms
from runner.training.modules.packed_linear import PackedLinear

_NAME = "default"  # peft's own name for a single adapter


def wrap(model: Any, config: Mapping[str, Any], *, hold_packed_zeros: bool = False) -> Any:
    """Return the model with new adapters as `config` (adapter_config.json) describes them; nothing else is trained.

    Random values come from torch's generator. B starts at zero, so that the outputs do not change at first. Zeros of
    pruned dense weights stay zero; those of packed ones do with `hold_packed_zeros`.
    """
    model.requires_grad_(False)
    lora = LoraConfig(**{key: value for key, value in config.items() if key not in ("peft_type", "inference_mode")})
    branch = HeldBranch if hold_packed_zeros else Branch
    lora._register_custom_module({nn.Linear: branch, Conv1D: branch})
    with warnings.catch_warnings(), _literal_names(model.config):
        # peft asks for an attribute that transformers is about to rename.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        wrapped = get_peft_model(model, lora)
    replace_wrappers(wrapped)
    return wrapped


@contextmanager
def _literal_names(config: Any) -> Iterator[None]:
    """Keep peft from taking modules of some types of models for experts of transformers 4 (`adapter_config.renamed`).

    It does so by the type in the configuration.
    """
    kind = config.model_type
    if kind not in adapter_config.RENAMED_TYPES:
        yield
        return
    config.model_type = ""
    try:
        yield
    finally:
        config.model_type = kind


def transposed(model: nn.Module) -> bool:
    """Return whether the model's linear modules are Conv1D, which store [in, out]."""
    return any(isinstance(module, Conv1D) for module in model.modules())


class Branch(LoraLinear):
    """peft's LoRA module, extended by pruned weights, and by DoRA with dropout over packed ones.

    For the latter, peft's own would store the dense weight for the backward.
    """

    holds_packed_zeros = False

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> None:
        conv1d = isinstance(base_layer, Conv1D)
        super().__init__(base_layer, adapter_name, config=config, is_target_conv_1d_layer=conv1d, **kwargs)
        bits = base_layer.numbers.bits if isinstance(base_layer, PackedLinear) else None
        self.masked = (bits is None or self.holds_packed_zeros) and is_pruned(self.base_weight(), bits)

    def base_weight(self) -> torch.Tensor:
        """Return W [out, in]."""
        weight: torch.Tensor = self.base_linear.weight.detach()
        return weight.T if self.fan_in_fan_out else weight

    @property
    def base_linear(self) -> Any:
        return self.get_base_layer()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        parts: Any = self
        dora = _NAME in self.lora_variant
        dropout = self.training and not isinstance(parts.lora_dropout[_NAME], nn.Identity)
        if not self.masked and not (dora and dropout and isinstance(self.base_linear, PackedLinear)):
            return super().forward(x, *args, **kwargs)
        a, b, scale = parts.lora_A[_NAME].weight, parts.lora_B[_NAME].weight, self.scaling[_NAME]
        dropped = computing(parts.lora_dropout[_NAME](x))
        y = product(dropped, a, b, scale, self.masked, self.base_weight)
        if dora:
            with torch.no_grad():
                norms = row_norms(adapted_weight(self.base_weight(), a, b, scale, masked=self.masked))
            y = (parts.lora_magnitude_vector[_NAME].weight / norms * y).to(y.dtype)
        if not dropout:
            return y if self.base_linear.bias is None else y + self.base_linear.bias.to(y.dtype)
        # Dropout acts only on the branch, as in peft: x Wᵀ without it, (V − W) with it.
        base: torch.Tensor = self.base_linear(x)
        return base + (y - product(dropped, a[:0], b[:, :0], scale, False, self.base_weight))


class HeldBranch(Branch):
    """A branch that also preserves the zeros of packed weights, which will be merged and quantized again."""

    holds_packed_zeros = True


def exported(trained: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (module and kind, tensor), as `adapters.write` takes them, of the parameters of a wrapped model."""
    for name, tensor in sorted(trained.items()):
        short = name.removeprefix(adapter_config.PREFIX).replace(f".{_NAME}.weight", ".weight").replace(f".{_NAME}", "")
        yield short.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"), tensor


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read the adapter in a file of trained parameters, as `exported` yields it."""
    from safetensors.torch import load_file

    return dict(exported(load_file(path)))

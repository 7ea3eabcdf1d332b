"""A low-rank adapter kept beside a checkpoint's weights, in its folder `adapter/`, as peft reads and writes it.

    adapter_config.json            r, lora_alpha, use_rslora, use_dora, target_modules, ...
    adapter_model.safetensors      base_model.model.<module>.lora_A.weight  [r, in]
                                   base_model.model.<module>.lora_B.weight  [out, r]
                                   base_model.model.<module>.lora_magnitude_vector  [out], DoRA only

`PeftModel.from_pretrained(model, folder, subfolder="adapter")` loads it on the model of the same folder. Modules have
the names of transformers' model. The planner's part imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint.adapter_config import FOLDER, PREFIX, WEIGHTS, adapter_config, scaling, unusable_adapter
from runner.model.layerwise.linear import widths

if TYPE_CHECKING:
    import torch
    from torch import nn


def opened(folder: Path) -> Adapter | None:
    """The adapter that the checkpoint in `folder` carries, its tensors still on disk."""
    found = adapter_config(folder)
    return None if found is None else Adapter(folder / FOLDER, found)


class Adapter:
    """An adapter whose tensors are read, and whose branches act, a decoder layer at a time.

    The arithmetic is peft's: the input in the adapter's type, y + s·B(A(x)) in the wider of both types, rounded to
    that of y; DoRA adds (m / ‖W + s·BA‖ − 1)·Wx to the branch, ‖·‖ over the inputs (Liu 2024, eq. 5).
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from runner.model.checkpoint.headers import read_shard
        from runner.model.checkpoint.reader import CheckpointReader

        self.config = config
        self.reader = CheckpointReader(folder, read_shard(folder, WEIGHTS))
        self._handles: dict[str, list[Any]] = {}

    def modules(self) -> list[str]:
        """The modules it acts on, by their names in the model."""
        names = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in self.reader.headers}
        return sorted(names)

    def check(self, modules: Mapping[str, nn.Module]) -> None:
        """RecipeError unless every module it names is among `modules` and has its widths."""
        found = []
        for name in self.modules():
            module = modules.get(name)
            if module is None:
                found.append(f"`{name}` is no module of the decoder layers")
                continue
            a, b = (self.reader.header(f"{PREFIX}{name}.lora_{part}.weight").shape for part in "AB")
            out_features, in_features = widths(module)
            if (b[0], a[1]) != (out_features, in_features):
                found.append(f"`{name}` is [{out_features}, {in_features}], the adapter is for [{b[0]}, {a[1]}]")
        if found:
            lines = "".join(f"\n    {line}" for line in found)
            raise unusable_adapter(f"the adapter in `{self.reader.folder}` does not fit the checkpoint:{lines}")

    def attach(self, layer: nn.Module, name: str) -> None:
        """Let it act on the linears of the decoder layer called `name`, whose weights are loaded."""
        handles = self._handles.setdefault(name, [])
        for inner in self.modules():
            if inner.startswith(name + "."):
                module = layer.get_submodule(inner.removeprefix(name + "."))
                handles.append(module.register_forward_hook(self._branch(inner, module)))

    def detach(self, name: str) -> None:
        """Forget the branches of the decoder layer called `name`."""
        for handle in self._handles.pop(name, []):
            handle.remove()

    def _branch(self, name: str, module: nn.Module) -> Any:
        from runner.model.layerwise.linear import is_conv1d

        weight = module.get_parameter("weight")
        a, b = (self.reader.read(f"{PREFIX}{name}.lora_{part}.weight").to(weight.device) for part in "AB")
        scale = scaling(self.config, name, a.shape[0])
        if not self.config.get("use_dora"):
            return partial(lora_hook, a=a, b=b, scale=scale)
        magnitude = self.reader.read(f"{PREFIX}{name}.lora_magnitude_vector").to(weight.device)
        rows = weight.T if is_conv1d(module) else weight
        ratio = magnitude / (rows.to(a.dtype) + scale * (b @ a)).norm(dim=1)
        return partial(_dora, a=a, b=b, scale=scale, ratio=ratio)


def lora_hook(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor, *, a: torch.Tensor, b: torch.Tensor,
    scale: float,
) -> torch.Tensor:  # fmt: skip
    x = inputs[0].to(a.dtype)
    return (output + x @ a.T @ b.T * scale).to(output.dtype)


def _dora(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor, *, a: torch.Tensor, b: torch.Tensor,
    scale: float, ratio: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    x = inputs[0].to(a.dtype)
    bias = getattr(module, "bias", None)
    base = output if bias is None else output - bias
    return (output + (ratio - 1) * base + ratio * (x @ a.T @ b.T) * scale).to(output.dtype)

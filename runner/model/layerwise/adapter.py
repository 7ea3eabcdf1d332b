"""A low-rank adapter kept beside a checkpoint's weights, as runner/model/checkpoint/adapter_config.py describes it.

Its modules have the names of transformers' model. The planner's part imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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

    The arithmetic is peft's: the input, before a scheme rounds it, in the adapter's type, y + s·B(A(x)) in the wider of
    both types, rounded to that of y; DoRA adds (m / ‖W + s·BA‖ − 1)·Wx to the branch, ‖·‖ over the inputs (Liu 2024,
    eq. 5). Experts compute with W + s·BA, in the type that W has in memory.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from runner.model.checkpoint.headers import read_shard
        from runner.model.checkpoint.reader import CheckpointReader

        self.config = config
        self.reader = CheckpointReader(folder, read_shard(folder, WEIGHTS))
        self._handles: dict[str, list[Any]] = {}
        self._parameters: dict[str, tuple[str, str]] = {}  # of experts, as `wrapped_parameters` gives them

    def modules(self) -> list[str]:
        """The modules it acts on, by their names in the model."""
        names = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in self.reader.headers}
        return sorted(names)

    def check(self, modules: Mapping[str, nn.Module]) -> None:
        """RecipeError unless every module it names is among `modules` and has its widths."""
        found = []
        self._parameters = wrapped_parameters(modules, self.config.get("target_parameters") or ())
        for name in self.modules():
            if name in self._parameters:
                found += self._misfit(name, modules)
                continue
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

    def _misfit(self, name: str, modules: Mapping[str, nn.Module]) -> list[str]:
        """Why factors do not fit the parameter of experts that they are for, if they do not."""
        module, key = self._parameters[name]
        parameter = f"`{module}.{key}`"
        shape = list(modules[module].get_parameter(key).shape)
        if len(shape) != 3:
            return [f"{parameter} is {shape}, which holds no experts"]
        experts, rows, columns = [shape[0], *(shape[:0:-1] if is_transposed(modules[module]) else shape[1:])]
        a, b = (self.reader.header(f"{PREFIX}{name}.lora_{part}.weight").shape for part in "AB")
        if (b[0], a[1]) == (rows, columns) and a[0] == b[1] and a[0] % experts == 0:
            return []
        return [f"{parameter} is {experts} of [{rows}, {columns}], the adapter is [{b[0]}, {b[1]}] · [{a[0]}, {a[1]}]"]

    def attach(self, layer: nn.Module, name: str) -> None:
        """Let it act on the linears and experts of the decoder layer called `name`, whose weights are loaded."""
        handles = self._handles.setdefault(name, [])
        for inner in self.modules():
            if inner in self._parameters and inner.startswith(name + "."):
                owner, key = self._parameters[inner]
                self._add(inner, layer.get_submodule(owner.removeprefix(name + ".")), key)
            elif inner.startswith(name + "."):
                module = layer.get_submodule(inner.removeprefix(name + "."))
                handles += _attached(module, self._branch(inner, module))

    def _add(self, name: str, experts: nn.Module, key: str) -> None:
        """Add the product of the factors to the weights of all experts."""
        import torch

        weights = experts.get_parameter(key).detach()
        a, b = (self.reader.read(f"{PREFIX}{name}.lora_{part}.weight").to(weights) for part in "AB")
        rank = a.shape[0] // len(weights)
        scale = scaling(self.config, f"{self._parameters[name][0]}.{key}", rank)
        for weight, left, right in zip(weights, *reversed(expert_factors(a, b, len(weights))), strict=True):
            matrix = weight.T if is_transposed(experts) else weight
            matrix.copy_(torch.addmm(matrix, left, right, alpha=scale))

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


def wrapped_parameters(modules: Mapping[str, nn.Module], targets: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the parameters that peft's `target_parameters` name: name of the factors in the file → module, parameter.

    `targets` are full names or ends of them.
    """
    found = {}
    for name, module in modules.items() if targets else ():
        keys = [key for key, _ in module.named_parameters(recurse=False)]
        named = [key for key in keys if any(f".{name}.{key}".endswith(f".{target}") for target in targets)]
        for depth, key in enumerate(reversed(named)):
            found[name + ".base_layer" * depth] = name, key
    return found


def is_transposed(experts: nn.Module) -> bool:
    """Whether a module of experts holds the matrix of each as [columns, rows]."""
    return bool(getattr(experts, "is_transposed", False))


def expert_factors(a: torch.Tensor, b: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of each expert, A [experts, r, in] and B [experts, out, r], of those that peft stores."""
    return a.view(experts, -1, a.shape[1]), b.view(b.shape[0], -1, experts).permute(2, 0, 1)


def _attached(module: nn.Module, branch: Any) -> list[Any]:
    """Let a branch act on what the module is called with, before the inputs of its weights are rounded.

    Servers, peft and graphs compute it so: the rounding belongs to the product with the packed weight.
    """
    given: list[torch.Tensor] = []

    def take(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        given[:] = [inputs[0]]

    def act(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = branch(module, (given.pop(),), output)
        return found

    return [module.register_forward_pre_hook(take, prepend=True), module.register_forward_hook(act)]


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

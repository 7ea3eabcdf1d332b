"""A decoder layer in float32 that a method rewrites in place, and what calibration says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from runner.model.layerwise.channel_scalings import Scaling, stored_gain
from runner.model.layerwise.layer_trials import Trial, inputs_of
from runner.model.layerwise.linear import is_conv1d


@dataclass
class InputSizes:
    """How large the columns of a linear's inputs get: `largest` and `sums` of absolute values, float32 and float64."""

    largest: torch.Tensor
    sums: torch.Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, columns: int, device: torch.device) -> InputSizes:
        wide = torch.float64 if device.type != "mps" else torch.float32
        return cls(torch.zeros(columns, device=device), torch.zeros(columns, dtype=wide, device=device))

    def add(self, inputs: torch.Tensor) -> None:
        """Take in inputs [..., columns]."""
        sizes = inputs.reshape(-1, inputs.shape[-1]).abs()
        self.largest = torch.maximum(self.largest, sizes.amax(0).float())
        self.sums += sizes.sum(0, dtype=self.sums.dtype)
        self.tokens += len(sizes)

    def mean(self) -> torch.Tensor:
        return (self.sums / max(1, self.tokens)).float()


@dataclass
class RewritableLayer:
    """A decoder layer in float32 as a method rewrites it; what it changes in place it notes in `changed`.

    name      of the layer in the model
    trials    the layer with hidden states of some calibration batches
    scout     the layer with those of a few tokens
    sizes     first linear of each group with one input, by its name inside the layer → how large its inputs get
    stored    parameter, by its name inside the layer → its name and type in the checkpoint; None for one that is not
              this layer's alone
    """

    name: str
    layer: nn.Module
    trials: list[Trial]
    scout: Trial
    scalings: list[Scaling]
    sizes: Mapping[str, InputSizes]
    stored: Callable[[str], tuple[str, torch.dtype] | None]
    changed: set[str] = field(default_factory=set)

    def site(self, linear: str) -> str:
        """Return the name that a linear has in the checkpoint."""
        found = self.stored(f"{linear}.weight")
        return f"{self.name}.{linear}" if found is None else found[0].removesuffix(".weight")

    def weight(self, linear: str) -> torch.Tensor:
        """Return the weight [out, in] of a linear: a view of what it holds."""
        module = self.layer.get_submodule(linear)
        weight = module.get_parameter("weight").data
        return weight.T if is_conv1d(module) else weight

    def movable(self, scaling: Scaling) -> bool:
        """Whether all parameters that a scaling changes are this layer's alone."""
        sources = [f"{scaling.source}.weight", f"{scaling.source}.bias"]
        names = [*sources, *(f"{reader}.weight" for reader in scaling.readers)]
        own = dict(self.layer.named_parameters())
        return all(self.stored(name) is not None for name in names if name in own)

    def scale(self, scaling: Scaling, scales: torch.Tensor) -> torch.Tensor:
        """Divide the output channels of a scaling's source by `scales` and multiply what its readers read by them.

        `scales` [columns of a reader] must be equal where columns read one channel. The weight of a norm is rounded to
        the type it is stored in first, and the scales that result are what the readers are multiplied by, and what is
        returned: so that the rounding of 1 + w, where w is stored, costs nothing.
        """
        module = self.layer.get_submodule(scaling.source)
        scales = torch.where(scaling.channels.to(scales.device) >= 0, scales, 1.0)
        if scaling.norm:
            scales = self._scale_norm(scaling.source, module, scales)
        else:
            self._scale_rows(scaling, module, scales)
        for reader in scaling.readers:
            self.weight(reader).mul_(scales)
            self.changed.add(f"{reader}.weight")
        return scales

    def norm_gain(self, name: str) -> float | None:
        """Return what a norm adds to its weight, as `stored_gain` does."""
        module = self.layer.get_submodule(name)
        return stored_gain(module, self._norm_inputs(module))

    def _scale_norm(self, name: str, module: nn.Module, scales: torch.Tensor) -> torch.Tensor:
        weight, bias = module.get_parameter("weight").data, module._parameters.get("bias")
        gain = self.norm_gain(name)
        if gain is None:
            return torch.ones_like(scales)
        stored = self.stored(f"{name}.weight")
        dtype = torch.float32 if stored is None else stored[1]
        before = weight + gain
        rounded = (before / scales - gain).to(dtype).float()
        found = before / (rounded + gain)
        sound = found.isfinite() & (found > 0)
        found = torch.where(sound, found, 1.0)
        weight.copy_(torch.where(sound, rounded, weight))
        self.changed.add(f"{name}.weight")
        if bias is not None:
            bias.data.div_(found)
            self.changed.add(f"{name}.bias")
        return found

    def _norm_inputs(self, module: nn.Module) -> torch.Tensor:
        return inputs_of(self.trials[0], module)[:8]

    def _scale_rows(self, scaling: Scaling, module: nn.Module, scales: torch.Tensor) -> None:
        rows = self.weight(scaling.source)
        channels = scaling.channels.to(scales.device)
        known = channels >= 0
        by_row = torch.ones(rows.shape[0], device=scales.device)
        by_row[channels[known]] = scales[known]
        rows.div_(by_row[:, None])
        self.changed.add(f"{scaling.source}.weight")
        bias = module._parameters.get("bias")
        if bias is not None:
            bias.data.div_(by_row)
            self.changed.add(f"{scaling.source}.bias")


def columns_of(scaling: Scaling, values: torch.Tensor, reduce: str) -> torch.Tensor:
    """Reduce values [columns] of a scaling's readers over those that read one channel ("amax" or "mean").

    The result is [columns] again, equal where columns share a channel.
    """
    channels = scaling.channels.to(values.device)
    known = channels >= 0
    size = int(channels.amax()) + 1
    by_channel = torch.zeros(size, dtype=values.dtype, device=values.device)
    by_channel.scatter_reduce_(0, channels[known], values[known], reduce, include_self=False)
    return torch.where(known, by_channel[channels.clamp_min(0)], values)

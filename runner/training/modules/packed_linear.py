"""Linear modules whose weights stay packed integers; they take no more memory than in the checkpoint.

A weight is dense only while a product runs, in the forward and again in the backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from runner.model.checkpoint.quantization.bit_packing import pack_rows, unpack_rows
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Numbers
from runner.model.checkpoint.reader import CheckpointReader


@dataclass(frozen=True)
class Packed:
    """A packed weight [out, in], independent of the format it was read from.

    words       int32 [out, ⌈in·bits/32⌉], the integers along the columns, least significant bit first
    scale       [out, G] in the dtype of the checkpoint; [1, 1] for one scale per tensor
    zero_point  uint8 like `scale`, or None where it is 2^(bits − 1) throughout
    groups      int64 [in], the group of each column, where they are not runs of `group_size` columns (GPTQ's g_idx)
    """

    words: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    groups: torch.Tensor | None
    numbers: Numbers
    in_features: int

    @staticmethod
    def from_quantized(weight: Quantized) -> Packed:
        words = pack_rows(weight.integers, weight.bits)
        return Packed(words, weight.scale, weight.zero_point, weight.groups, weight.numbers, weight.in_features)

    @property
    def bits(self) -> int:
        return self.numbers.bits

    def integers(self) -> torch.Tensor:
        """Return the integers, uint8 [out, in]."""
        return unpack_rows(self.words, self.bits, self.in_features)

    def dequantize(self, dtype: torch.dtype, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weight [out, in], bit for bit as `Quantized.dequantize`; `scale` replaces the stored one."""
        scale = self.scale if scale is None else scale
        return Quantized(self.integers(), scale, self.zero_point, self.numbers, self.groups).dequantize(dtype)

    def centred(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the integers less their zero point [out, in]."""
        steps = self.integers().to(dtype)
        if self.zero_point is None:
            return steps.sub_(2 ** (self.bits - 1))
        return steps.sub_(self.zero_point.to(dtype)[:, self.columns()])

    def columns(self) -> torch.Tensor:
        """Return the column of `scale` for each input, int64 [in]."""
        if self.groups is not None:
            return self.groups
        places = torch.arange(self.in_features, device=self.words.device)
        return places // self.numbers.columns(self.in_features)

    def scale_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return dL/ds[n, g] = Σ_{k in g} dL/dW[n, k] · (q[n, k] − z[n, g]), like `scale`, for dL/dW [out, in]."""
        each = gradient.to(torch.float32) * self.centred(torch.float32)
        rows = torch.zeros(each.shape[0], self.scale.shape[1], device=each.device)
        rows.index_add_(1, self.columns(), each)
        return rows if self.numbers.strategy != "tensor" else rows.sum().reshape(1, 1)


def read(reader: CheckpointReader, module: str) -> Packed:
    """Read a packed module of a checkpoint by its stored name. StepFailed where its tensors do not fit its scheme."""
    return Packed.from_quantized(reader.read_quantized(module))


class PackedLinear(nn.Linear):
    """y = x Wᵀ + b with a packed W. A subclass of nn.Linear for peft and module patterns.

    With `train_scales` the scales are s·(1 + δ), rounded to the dtype of the checkpoint as they will be written, and
    δ ([out, G], float32, initially zero) is the parameter `scale_change`: relative, so that one learning rate suits
    groups of large and of small weights, and weight decay pulls towards the checkpoint.
    """

    words: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    groups: torch.Tensor | None

    def __init__(self, packed: Packed, bias: torch.Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = packed.in_features, packed.words.shape[0]
        self.numbers = packed.numbers
        self.dtype = dtype
        for name in ("words", "scale", "zero_point", "groups"):
            self.register_buffer(name, getattr(packed, name), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]  # as in nn.Linear
        self.register_parameter("scale_change", None)
        self.scale_change: nn.Parameter | None

    def reset_parameters(self) -> None:
        """Do nothing: the integers come from a checkpoint."""

    def train_scales(self) -> None:
        self.scale_change = nn.Parameter(torch.zeros(self.scale.shape, device=self.scale.device))

    @property
    def packed(self) -> Packed:
        return Packed(self.words, self.scale, self.zero_point, self.groups, self.numbers, self.in_features)

    @property
    def stored_scale(self) -> torch.Tensor:
        """The scales as they would be written now, [out, G], in the dtype of the checkpoint."""
        if self.scale_change is None:
            return self.scale
        change = self.scale_change.detach()
        return (self.scale.float() * (1 + change)).to(self.scale.dtype)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] that the forward multiplies with."""
        return self.packed.dequantize(dtype, self.stored_scale)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]  # a parameter in nn.Linear
        """The weight [out, in], dequantized for this call; changes of it are lost."""
        return self.dense(self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        found: torch.Tensor = _Product.apply(input.to(dtype), self.scale_change, self)  # type: ignore[no-untyped-call]
        return found if self.bias is None else found + self.bias.to(dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.numbers.describe()}"


class _Product(torch.autograd.Function):
    """x Wᵀ [..., out] for x [..., in]; stores no dense weight, and x only where scales are trained."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale_change: torch.Tensor | None, module: PackedLinear) -> torch.Tensor:
        ctx.module = module
        if scale_change is not None and scale_change.requires_grad:
            ctx.save_for_backward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, module.dense(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        (gradient,) = gradients
        module: PackedLinear = ctx.module
        to_x, to_change = None, None
        if ctx.needs_input_grad[0]:
            to_x = gradient @ module.dense(gradient.dtype)
        if ctx.needs_input_grad[1]:
            (x,) = ctx.saved_tensors
            rows = gradient.reshape(-1, gradient.shape[-1])
            to_weight = rows.t() @ x.reshape(-1, x.shape[-1])
            to_change = module.packed.scale_gradient(to_weight) * module.scale.float()
        return to_x, to_change, None

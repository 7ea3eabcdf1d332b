"""A linear weight as codes on a grid: what quantizers produce and what on-disk formats store."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runner.model.checkpoint.quantization.elements import codebook
from runner.model.checkpoint.quantization.scheme import Numbers

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # values of the codes 0 to 7; 8 to 15 are their negatives


@dataclass(frozen=True)
class Quantized:
    """`weight ≈ scale · (value of the code − zero point)`, scale and zero point shared as `numbers.layout` says.

    codes       uint8 [out, in]: of integers the number itself, in [0, 2^bits); of floats their bits; of codebooks those
                of their tables
    scale       [out, G], already rounded to the type in which it is stored; [1, 1] for "tensor"; of blocks of r × c
                [⌈out / r⌉, ⌈in / c⌉]
    zero_point  uint8 [out, G] ([1, 1] for "tensor"), or None when symmetric: then it is 2^(bits − 1) of integers
    numbers     the element, and what shares a scale
    global_scale  float32 [1]: what the scales of two levels are divided by; else None
    input_scale  [1]: of the inputs that the weight is multiplied with, where calibration gives it; else None. Static
                inputs are `input_scale` · level; of two levels, the scales of groups are divided by it
    groups      int64 [in]: the group of each column, where groups are no runs of columns (GPTQ's g_idx); else None
    G           ⌈in / group_size⌉; the last group may be shorter where the format can store that
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    numbers: Numbers
    groups: torch.Tensor | None = None
    global_scale: torch.Tensor | None = None
    input_scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8 or self.codes.ndim != 2:
            raise ValueError(f"codes must be uint8 [out, in], not {self.codes.dtype} {self._shape(self.codes)}")
        rows, groups = self.numbers.scale_shape(self.out_features, self.in_features)
        if not self.scale.is_floating_point() or self._shape(self.scale) != (rows, groups):
            raise ValueError(f"scale must be floating [{rows}, {groups}], not {self._shape(self.scale)}")
        zero = self.zero_point
        if zero is not None and (zero.dtype != torch.uint8 or self._shape(zero) != (rows, groups)):
            raise ValueError(f"zero_point must be uint8 [{rows}, {groups}], not {zero.dtype} {self._shape(zero)}")
        if self.numbers.symmetric != (zero is None):
            raise ValueError("symmetric numbers have no zero_point, and asymmetric ones have one")
        if self.numbers.two_level != (self.global_scale is not None):
            raise ValueError("numbers of two levels have a global_scale, and others have none")

    @staticmethod
    def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
        return tuple(tensor.shape)

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]

    @property
    def bits(self) -> int:
        return self.numbers.bits

    @property
    def strategy(self) -> str:
        return self.numbers.strategy

    @property
    def group_size(self) -> int:
        """Columns that share a scale; all of them for "channel" and "tensor"."""
        return self.numbers.columns(self.in_features)

    @property
    def symmetric(self) -> bool:
        return self.zero_point is None

    @property
    def dtype(self) -> torch.dtype:
        """The type in which readers compute the weight: compressed-tensors unpacks to bf16 where scales are bytes."""
        return torch.bfloat16 if self.scale.dtype.itemsize == 1 else self.scale.dtype

    @property
    def integers(self) -> torch.Tensor:
        """uint8 [out, in], for what computes with integers. ValueError where the codes are those of floats."""
        if not self.numbers.is_integer:
            raise ValueError(f"the weight is stored as {self.numbers.describe()}, not as integers")
        return self.codes

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] in `dtype`, bit for bit as compressed-tensors and gptqmodel compute it on loading.

        Both subtract integers exactly, multiply in the dtype of the stored scale (one rounding) and then convert.
        """
        work = self.scale.dtype
        if not self.numbers.is_integer:
            return self._dequantize_floats(dtype)
        weight = self.integers.to(work)  # at most 255: exact in bf16 and fp16, as is the difference
        zero = 2 ** (self.bits - 1) if self.zero_point is None else self.zero_point.to(work)
        if self.groups is not None:
            weight.sub_(zero if isinstance(zero, int) else zero[:, self.groups])
            return weight.mul_(self.scale[:, self.groups]).to(dtype)
        if self.strategy != "group":
            return weight.sub_(zero).mul_(self.scale).to(dtype)
        groups, tail = divmod(self.in_features, self.group_size)
        covered = groups * self.group_size
        body = weight[:, :covered].view(-1, groups, self.group_size)
        last = weight[:, covered:]
        if isinstance(zero, int):
            weight.sub_(zero)
        else:
            body.sub_(zero[:, :groups, None])
            if tail:
                last.sub_(zero[:, groups:])
        body.mul_(self.scale[:, :groups, None])
        if tail:
            last.mul_(self.scale[:, groups:])
        return weight.to(dtype)

    def _dequantize_floats(self, dtype: torch.dtype) -> torch.Tensor:
        """Every float is exact in the dtype of the scale; their product is rounded once there, and then converted.

        Scales of two levels are divided by the global one in float32, and multiplied there.
        """
        scale = self.scale.to(self.dtype)
        if self.global_scale is not None:
            scale = scale / self.global_scale
        if self.numbers.is_codebook:
            book = codebook(self.numbers.element, self.codes.device)
            values = book.levels.to(scale.dtype)[book.codes.argsort()[self.codes.long()]]
        elif self.numbers.element == "float8_e4m3":
            values = self.codes.view(torch.float8_e4m3fn).to(scale.dtype)
        else:
            table = torch.tensor((*E2M1, *(-value for value in E2M1)), dtype=scale.dtype, device=self.codes.device)
            values = table[self.codes.long()]
        if isinstance(self.numbers.layout, tuple):
            scale = scale.repeat_interleave(self.numbers.layout[0], 0)[: self.out_features]
        if scale.shape[1] > 1:
            scale = scale.repeat_interleave(self.group_size, 1)[:, : self.in_features]
        return values.mul_(scale).to(self.dtype).to(dtype)

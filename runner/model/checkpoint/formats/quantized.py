"""A linear weight as integers on a grid: what quantizers produce and what on-disk formats store."""

from __future__ import annotations

from dataclasses import dataclass

import torch

STRATEGIES = ("group", "channel", "tensor")


@dataclass(frozen=True)
class Quantized:
    """`weight ≈ scale · (integers − zero_point)`, the scale and zero point shared by a run of columns of one row.

    integers    uint8 [out, in], each in [0, 2^bits)
    scale       [out, G], already rounded to the floating dtype in which it is stored; [1, 1] for "tensor"
    zero_point  uint8 [out, G] ([1, 1] for "tensor"), or None when symmetric: then it is 2^(bits − 1)
    group_size  columns per group; in_features for "channel" and "tensor", where G is 1
    G           ⌈in / group_size⌉; the last group may be shorter where the format can store that
    """

    integers: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    bits: int
    group_size: int
    strategy: str

    def __post_init__(self) -> None:
        if self.integers.dtype != torch.uint8 or self.integers.ndim != 2:
            raise ValueError(
                f"integers must be uint8 [out, in], not {self.integers.dtype} {self._shape(self.integers)}"
            )
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; got {self.strategy!r}")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2..8; got {self.bits}")
        rows = 1 if self.strategy == "tensor" else self.out_features
        groups = -(-self.in_features // self.group_size) if self.strategy == "group" else 1
        if not self.scale.is_floating_point() or self._shape(self.scale) != (rows, groups):
            raise ValueError(f"scale must be floating [{rows}, {groups}], not {self._shape(self.scale)}")
        zero = self.zero_point
        if zero is not None and (zero.dtype != torch.uint8 or self._shape(zero) != (rows, groups)):
            raise ValueError(f"zero_point must be uint8 [{rows}, {groups}], not {zero.dtype} {self._shape(zero)}")

    @staticmethod
    def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
        return tuple(tensor.shape)

    @property
    def out_features(self) -> int:
        return self.integers.shape[0]

    @property
    def in_features(self) -> int:
        return self.integers.shape[1]

    @property
    def symmetric(self) -> bool:
        return self.zero_point is None

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] in `dtype`, bit for bit as compressed-tensors and gptqmodel compute it on loading.

        Both subtract integers exactly, multiply in the dtype of the stored scale (one rounding) and then convert.
        """
        work = self.scale.dtype
        weight = self.integers.to(work)  # at most 255: exact in bf16 and fp16, as is the difference
        zero = 2 ** (self.bits - 1) if self.zero_point is None else self.zero_point.to(work)
        if self.strategy != "group":
            return weight.sub_(zero).mul_(self.scale).to(dtype)
        groups, tail = divmod(self.in_features, self.group_size)
        whole = groups * self.group_size
        body = weight[:, :whole].view(-1, groups, self.group_size)
        last = weight[:, whole:]
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

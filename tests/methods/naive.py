"""GPTQ and GPTAQ one weight at a time in float64, written from the papers: the independent reference of the tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import Numbers

Matrix = list[list[float]]


def levels_of(
    bits: int,
    group_size: int | None = None,
    symmetric: bool = True,
    per_tensor: bool = False,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> Levels:
    """Integer levels: groups of columns, or a scale for each channel, or one for the tensor."""
    layout = "tensor" if per_tensor else group_size or "channel"
    return Levels(Numbers(f"int{bits}", layout, symmetric=symmetric), scale_dtype)


@dataclass(frozen=True)
class Points:
    """A grid as plain numbers: scale and zero point by row and group."""

    scale: Matrix
    zero: Matrix
    levels: int
    group_size: int

    def nearest(self, row: int, column: int, value: float) -> tuple[int, float]:
        """The integer and the value it stands for. Ties go to the even multiple of the scale."""
        group = column // self.group_size
        scale, zero = self.scale[row][group], self.zero[row][group]
        q = min(max(round(value / scale) + zero, 0), self.levels - 1)
        return int(q), scale * (q - zero)


def dampened(hessian: torch.Tensor, fraction: float) -> torch.Tensor:
    h = hessian.double().clone()
    mean = h.diagonal().mean()
    dead = h.diagonal() == 0
    h.diagonal().add_(fraction * mean)
    h.diagonal()[dead] = 1.0
    return h


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    points: Points,
    order: list[int],
    cross: torch.Tensor | None = None,
    alpha: float = 0.0,
    keep_zeros: bool = False,
) -> list[list[int]]:
    """OBQ's elimination in a fixed order: after column q, w −= (w_q − ŵ_q) / [H⁻¹]_qq · H⁻¹_q, and H⁻¹ loses q.

    GPTAQ besides adds, to the columns F still to come, α · w_q · C_qF (H_FF)⁻¹.  `hessian` is dampened already.
    """
    rows, columns = weight.shape
    w: Matrix = weight.double().tolist()
    kept = [[not keep_zeros or x != 0 for x in row] for row in w]
    inverse: Matrix = torch.linalg.inv(hessian).tolist()
    c: Matrix = cross.double().tolist() if cross is not None else []
    integers = [[0] * columns for _ in range(rows)]
    left = list(order)
    for q in order:
        left.remove(q)
        pivot = inverse[q][q]
        row_q = list(inverse[q])
        for i in left:
            for j in left:
                inverse[i][j] -= row_q[i] * row_q[j] / pivot
        drift = {j: alpha * math.fsum(c[q][i] * inverse[i][j] for i in left) for j in left} if c else {}
        for r in range(rows):
            value = w[r][q]
            integer, point = points.nearest(r, q, value if kept[r][q] else 0.0)
            integers[r][q] = integer
            for j in left:
                w[r][j] += -(value - point) / pivot * row_q[j] + value * drift.get(j, 0.0)
    return integers


def output_error(difference: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(E H Eᵀ)."""
    e, h = difference.double().tolist(), hessian.double().tolist()
    n = len(h)
    return math.fsum(row[i] * h[i][j] * row[j] for row in e for i in range(n) for j in range(n))

"""Grids: the scale and zero point of every tensor, channel or group of columns, chosen before any integer is.

A value w becomes s · (q − z) with an integer q in [0, 2^b). Symmetric grids have z = 2^(b−1), so the integers reach
one step further down than up; the scale of a full range is then absmax / (2^b − 1) · 2, which shares the error between
the two ends. Asymmetric grids are the linear min–max map, with zero inside the range. Scales are rounded to the dtype
in which they are stored before integers are chosen, so that no reader computes anything else.

Three ways to choose a range: `minmax` takes it whole; `mse` shrinks it step by step and keeps the smallest Σ (w − ŵ)²;
`weighted_mse` keeps the smallest Σ h_j (w_j − ŵ_j)², h the importance of the columns. At every step the
best scale for the integers found is solved for in closed form, so that few steps search as well as many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.linalg import vecdot, vector_norm

from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Numbers

METHODS = ("minmax", "mse", "weighted_mse")
STEPS = 10  # ranges tried
SMALLEST = {2: 0.3, 3: 0.4, 4: 0.6}  # smallest share of the full range tried, by bits
SMALLEST_OTHERWISE = 0.7
CHUNK = 1 << 18  # elements worked on at once on a CPU: four float32 buffers of them stay in the caches
GPU_CHUNK = 1 << 25  # and on a GPU, so that an operation is more than its start

Pick = tuple[slice, slice, None]  # rows, groups, and a new axis for the columns of a group


@dataclass(frozen=True)
class Scheme:
    """How weights are put on a grid. `group_size` None: one grid per channel, or for all of it with `per_tensor`."""

    bits: int
    group_size: int | None = None
    symmetric: bool = True
    per_tensor: bool = False
    scale_dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2..8; got {self.bits}")
        if self.group_size is not None and (self.group_size < 1 or self.per_tensor):
            raise ValueError(f"group_size must be positive, and None for a tensor-wide grid; got {self.group_size}")

    @property
    def levels(self) -> int:
        return int(2**self.bits)

    @property
    def strategy(self) -> str:
        return "tensor" if self.per_tensor else "channel" if self.group_size is None else "group"

    def columns(self, in_features: int) -> int:
        """Columns that share a grid."""
        return self.group_size or in_features


@dataclass(frozen=True)
class Grid:
    """Scales [out, G] float32, exactly representable in `scheme.scale_dtype`, and zero points [out, G] float32,
    or None when symmetric. [1, 1] for a tensor-wide grid."""

    scheme: Scheme
    scale: torch.Tensor
    zero: torch.Tensor | None

    def zeros(self) -> torch.Tensor:
        """Zero points in the shape of `scale`, whether they are stored or not."""
        return torch.full_like(self.scale, self.scheme.levels // 2) if self.zero is None else self.zero

    def rows(self, rows: slice) -> Grid:
        """The grid of some rows; not of a tensor-wide one."""
        return Grid(self.scheme, self.scale[rows], None if self.zero is None else self.zero[rows])

    def pack(self, integers: torch.Tensor) -> Quantized:
        """`integers` [out, in] uint8 on this grid."""
        scheme = self.scheme
        return Quantized(
            codes=integers,
            scale=self.scale.to(scheme.scale_dtype),
            zero_point=None if self.zero is None else self.zero.to(torch.uint8),
            numbers=Numbers(f"int{scheme.bits}", scheme.group_size or scheme.strategy, symmetric=scheme.symmetric),
        )


def make_grid(weight: torch.Tensor, scheme: Scheme, method: str, importance: torch.Tensor | None = None) -> Grid:
    """The grid for `weight` [out, in].

    method      minmax, mse or weighted_mse
    importance  [in], not negative: what an error in a column costs (for GPTQ D of its factorization); for weighted_mse
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    columns = weight.shape[1]
    costs = torch.ones(columns, device=weight.device)
    if method == "weighted_mse":
        if importance is None:
            raise ValueError("weighted_mse needs the importance of the columns")
        # Where no column of a group has any importance there is nothing to choose by: the floor leaves the plain error.
        costs = importance.float() / importance.float().mean().clamp(min=torch.finfo(torch.float32).tiny) + 1e-6
    scales, zeros = [], []
    for span, size in _runs(columns, scheme):
        parts = [weight[rows, span] for rows in _chunks(weight)]
        families = [parts] if scheme.per_tensor else [[part] for part in parts]
        chosen = [_choose(family, costs[span].view(-1, size), scheme, method != "minmax") for family in families]
        scales.append(torch.cat([scale for scale, _ in chosen]))
        zeros.append(torch.cat([zero for _, zero in chosen]))
    return Grid(scheme, torch.cat(scales, dim=1), None if scheme.symmetric else torch.cat(zeros, dim=1))


def round_to_grid(weight: torch.Tensor, grid: Grid) -> Quantized:
    """Every weight [out, in] to the nearest point of its grid."""
    integers = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    zeros = grid.zeros()
    group = 0
    for span, size in _runs(weight.shape[1], grid.scheme):
        count = (span.stop - span.start) // size
        groups = slice(group, group + count)
        group += count
        for rows in _chunks(weight):
            own: Pick = (slice(None) if grid.scheme.per_tensor else rows, groups, None)
            values = _grouped(weight[rows, span], size) / grid.scale[own]
            values.round_().add_(zeros[own]).clamp_(0, grid.scheme.levels - 1)
            integers[rows, span] = values.flatten(1).to(torch.uint8)
    return grid.pack(integers)


def quantize_rtn(weight: torch.Tensor, scheme: Scheme, method: str = "minmax") -> Quantized:
    """Round to nearest: the whole of `quantize.rtn` for one weight [out, in]."""
    return round_to_grid(weight, make_grid(weight, scheme, method))


def storable(scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Scales as they will be read: rounded to `scale_dtype`, in float32, never zero, and finite times any integer.

    The smallest is the smallest normal number of bf16, or the smallest number of fp16 at all (normal in float32): a
    machine that flushes subnormals still reads it. Weights beyond the largest grid are clipped.
    """
    dtype = scheme.scale_dtype
    least = 2.0**-24 if dtype is torch.float16 else torch.finfo(dtype).smallest_normal
    return scale.clamp(least, torch.finfo(dtype).max / scheme.levels).to(dtype).float()


def _choose(
    parts: list[torch.Tensor], costs: torch.Tensor, scheme: Scheme, search: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points [rows, G] of one chunk of rows, or [1, 1] for all chunks of a tensor.

    parts  the weights of each chunk, [rows, G · size];  costs  [G, size]
    """
    size = costs.shape[1]
    values = [_grouped(part, size) for part in parts]
    extremes = [torch.aminmax(part, dim=2) for part in values]
    low, high = (torch.cat(side) for side in zip(*extremes, strict=True))
    if scheme.per_tensor:
        low, high = low.amin().view(1, 1), high.amax().view(1, 1)
    top = scheme.levels - 1
    if scheme.symmetric:
        full = torch.maximum(-low, high) * (2 / top)
        zero = torch.full_like(full, scheme.levels // 2)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        full = (high - low) / top
        zero = (-low / full.clamp(min=torch.finfo(torch.float32).tiny)).round_().clamp_(0, top)
    # A group of zeros has no range: any scale stores it exactly.
    full = torch.where(full > 0, full, 1.0)
    best = storable(full, scheme)
    if not search:
        return best, zero
    least = torch.full_like(best, torch.inf)
    smallest = SMALLEST.get(scheme.bits, SMALLEST_OTHERWISE)
    roots = costs.sqrt()
    weighted = [part * roots for part in values]
    fresh = torch.empty_like(values[0]), torch.empty_like(values[0])  # written again and again: new pages cost as much
    for step in range(STEPS):
        tried = storable(full * (1 - (1 - smallest) * step / (STEPS - 1)), scheme)
        sums = [_moments(w, v, roots, tried, zero, scheme, fresh) for w, v in zip(values, weighted, strict=True)]
        a, b, c = (torch.cat(kind) for kind in zip(*sums, strict=True))
        if scheme.per_tensor:
            a, b, c = (kind.sum().view(1, 1) for kind in (a, b, c))
        fitted = storable(tried + b / c.clamp(min=torch.finfo(torch.float32).tiny), scheme)
        move = fitted - tried
        for scale, error in ((tried, a), (fitted, a - 2 * move * b + move * move * c)):
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, scale, best)
    return best, zero


def _moments(
    w: torch.Tensor,
    weighted: torch.Tensor,
    roots: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    scheme: Scheme,
    fresh: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Σ h r², Σ h r q and Σ h q² [rows, G] of each grid, q the nearest integers at `scale` and r = w − scale · q.

    With these integers, a scale of `scale + d` leaves the error Σ h r² − 2 d Σ h r q + d² Σ h q². `roots` [G, size] are
    √h, `weighted` is √h w, [rows, G, size] as `w`: multiplied once, both factors of every sum are at hand. `fresh` are
    two buffers of at least that size.
    """
    q, r = (buffer[: w.shape[0]] for buffer in fresh)
    torch.div(w, scale[..., None], out=q).round_()
    if scheme.symmetric:  # one zero for all: bounds that are tensors take ten times as long
        q.clamp_(-(scheme.levels // 2), scheme.levels - 1 - scheme.levels // 2)
    else:
        q.add_(zero[..., None]).clamp_(0, scheme.levels - 1).sub_(zero[..., None])
    q.mul_(roots)
    torch.addcmul(weighted, q, scale[..., None], value=-1, out=r)
    return vector_norm(r, dim=2).square_(), vecdot(q, r), vector_norm(q, dim=2).square_()


def _grouped(part: torch.Tensor, size: int) -> torch.Tensor:
    """[rows, G · size] as float32 [rows, G, size]."""
    return part.float().reshape(part.shape[0], -1, size)


def _runs(columns: int, scheme: Scheme) -> list[tuple[slice, int]]:
    """The columns as runs of equal groups: all whole groups, and the short last one if there is one."""
    size = scheme.columns(columns)
    whole = columns - columns % size
    runs = [(slice(0, whole), size), (slice(whole, columns), columns - whole)]
    return [run for run in runs if run[0].start < run[0].stop]


def _chunks(weight: torch.Tensor) -> list[slice]:
    rows, columns = weight.shape
    count = max(1, (CHUNK if weight.device.type == "cpu" else GPU_CHUNK) // columns)
    return [slice(begin, min(begin + count, rows)) for begin in range(0, rows, count)]

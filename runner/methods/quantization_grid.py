"""Grids: the scale and zero point of every tensor, channel, block or group of columns, chosen before any code is.

A value w becomes s · (q − z) with a level q of the element. Integers lie in [0, 2^b); symmetric grids of them have
z = 2^(b−1), so that they reach one step further down than up; the scale of a full range is then absmax / (2^b − 1) · 2,
which shares the error between the two ends. Asymmetric grids are the linear min–max map, with zero inside the range.
Floats and tables have z = 0, and a full range puts absmax on their largest level. Scales are rounded to the dtype in
which they are stored before codes are chosen, so that every reader computes the same values.

Three ways to choose a range: `minmax` takes all of it; `mse` shrinks it step by step and keeps the smallest Σ (w − ŵ)²;
`weighted_mse` keeps the smallest Σ h_j (w_j − ŵ_j)², h the importance of the columns. At every step the
best scale for the integers found is solved for in closed form, so that few steps search as well as many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.linalg import vecdot, vector_norm

from runner.methods.weight_parts import chunks, grouped, runs
from runner.model.checkpoint.quantization import scale_types
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Numbers

METHODS = ("minmax", "mse", "weighted_mse")
STEPS = 10  # ranges tried
SMALLEST = {2: 0.3, 3: 0.4, 4: 0.6}  # smallest share of the full range tried, by bits
SMALLEST_OTHERWISE = 0.7
SMALLEST_POWER = 0.5  # powers of two: half of a scale has the same levels, and one more
GREATEST_GLOBAL_SCALE = 2.0**100

Pick = tuple[slice, slice, None]  # rows, groups, and a new axis for the columns of a group


@dataclass(frozen=True)
class Grid:
    """The scales and zero points on which the codes of one weight [out, in] lie.

    scale  float32 [out, G], exactly representable in `levels.scale_dtype`; [1, 1] for a tensor-wide grid,
           [⌈out / r⌉, ⌈in / c⌉] for blocks of r × c
    zero   float32 of the same shape; None when symmetric
    """

    levels: Levels
    scale: torch.Tensor
    zero: torch.Tensor | None

    def zeros(self) -> torch.Tensor:
        """Return zero points in the shape of `scale`, whether they are stored or not."""
        return torch.full_like(self.scale, self.levels.middle) if self.zero is None else self.zero

    def by_row(self, rows: int) -> Grid:
        """Return the same grid with scales for each of `rows` rows, where blocks share them."""
        layout = self.levels.numbers.layout
        if not isinstance(layout, tuple):
            return self
        height, width = layout
        return Grid(self.levels.grouped(width), self.scale.repeat_interleave(height, 0)[:rows], None)

    def rows(self, rows: slice) -> Grid:
        """Return the grid of some rows; not for a tensor-wide grid, nor for blocks (see `by_row`)."""
        return Grid(self.levels, self.scale[rows], None if self.zero is None else self.zero[rows])

    def pack(self, codes: torch.Tensor) -> Quantized:
        """Return a quantized weight with `codes` [out, in] uint8 on this grid."""
        return Quantized(
            codes=codes,
            scale=self._stored_scale(),
            zero_point=None if self.zero is None else self.zero.to(torch.uint8),
            numbers=self.levels.numbers.stored,
            global_scale=self.levels.global_scale,
        )

    def _stored_scale(self) -> torch.Tensor:
        dtype = self.levels.scale_dtype
        if scale_types.in_one_byte(dtype):
            return self.levels.scale_codes(self.scale).view(dtype)
        return self.scale.to(dtype)


def make_grid(
    weight: torch.Tensor,
    levels: Levels,
    method: str,
    importance: torch.Tensor | None = None,
    largest: torch.Tensor | None = None,
) -> Grid:
    """Return the grid for `weight` [out, in].

    method      minmax, mse or weighted_mse
    importance  [in], not negative: what an error in a column costs (for GPTQ D of its factorization); for weighted_mse
    largest     the largest |w| of the tensors that share one global scale; by default that of this one
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if method == "weighted_mse" and importance is None:
        raise ValueError("weighted_mse needs the importance of the columns")
    if isinstance(levels.numbers.layout, tuple):
        return _block_grid(weight, levels, levels.numbers.layout, method, importance)
    if levels.numbers.two_level:
        levels = replace(levels, global_scale=global_scale(weight.abs().amax() if largest is None else largest, levels))
    columns = weight.shape[1]
    costs = torch.ones(columns, device=weight.device)
    if method == "weighted_mse" and importance is not None:
        # Where no column of a group has any importance there is nothing to choose by: the floor leaves the plain error.
        costs = importance.float() / importance.float().mean().clamp(min=torch.finfo(torch.float32).tiny) + 1e-6
    scales, zeros = [], []
    for span, size in runs(columns, levels):
        parts = [weight[rows, span] for rows in chunks(weight)]
        families = [parts] if levels.per_tensor else [[part] for part in parts]
        chosen = [_choose(family, costs[span].view(-1, size), levels, method != "minmax") for family in families]
        scales.append(torch.cat([scale for scale, _ in chosen]))
        zeros.append(torch.cat([zero for _, zero in chosen]))
    return Grid(levels, torch.cat(scales, dim=1), None if levels.symmetric else torch.cat(zeros, dim=1))


def global_scale(largest: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Return the global scale of numbers of two levels, float32 [1]: `largest` gets the largest scale and level.

    1 for a tensor of zeros; never so large that scales divided by it would be subnormal.
    """
    found = 448.0 * levels.full_range / largest.float()
    return torch.where(largest > 0, found, 1.0).clamp(max=GREATEST_GLOBAL_SCALE).reshape(1)


def _block_grid(
    weight: torch.Tensor, levels: Levels, block: tuple[int, int], method: str, importance: torch.Tensor | None
) -> Grid:
    """Return the grid of a weight in blocks.

    Blocks are the groups of a matrix in which each row holds the blocks of one row of blocks, one after another.
    """
    height, width = block
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
    laid = padded.view(-1, height, padded.shape[1] // width, width).transpose(1, 2).reshape(-(-rows // height), -1)
    if importance is not None:
        spread = torch.nn.functional.pad(importance, (0, -columns % width)).view(-1, 1, width)
        importance = spread.expand(-1, height, -1).reshape(-1)
    found = make_grid(laid, levels.grouped(height * width), method, importance)
    return Grid(levels, found.scale, None)


def round_to_grid(weight: torch.Tensor, grid: Grid) -> Quantized:
    """Round every weight [out, in] to the nearest point of its grid."""
    return _rounded(weight, grid, None)[0]


def round_and_measure(weight: torch.Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Quantized, float]:
    """Round as `round_to_grid` does; return ‖Ŵ − W‖² / ‖W‖² too, Ŵ as readers compute it in `dtype`.

    It is measured while a part of the weight is in the caches: in a quarter of the time of doing it afterwards.
    """
    return _rounded(weight, grid, dtype)


def _rounded(weight: torch.Tensor, grid: Grid, dtype: torch.dtype | None) -> tuple[Quantized, float]:
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    own_grid = grid.by_row(weight.shape[0])
    levels, zeros = own_grid.levels, own_grid.zeros()
    error = energy = torch.zeros((), dtype=torch.float64, device=weight.device)
    group = 0
    for span, size in runs(weight.shape[1], levels):
        count = (span.stop - span.start) // size
        groups = slice(group, group + count)
        group += count
        for rows in chunks(weight):
            own: Pick = (slice(None) if levels.per_tensor else rows, groups, None)
            part, scale = grouped(weight[rows, span], size), own_grid.scale[own]
            if dtype is None:
                codes[rows, span] = levels.round_(levels.in_steps(part, scale), zeros[own]).flatten(1)
                continue
            found, steps = levels.round_to_steps_(levels.in_steps(part, scale), zeros[own])
            codes[rows, span] = found.flatten(1)
            read = steps.mul_(scale).to(levels.read_dtype).to(dtype)
            error = error + _energy(read.float().sub_(part))
            energy = energy + _energy(part)
    return grid.pack(codes), float(error / energy.clamp_min(1e-30))


def _energy(values: torch.Tensor) -> torch.Tensor:
    """Return ‖values‖² in float64; each row in float32."""
    rows: torch.Tensor = vector_norm(values.flatten(1), dim=1)
    return rows.double().square().sum()


def grid_of(quantized: Quantized, numbers: Numbers | None = None) -> Grid:
    """Return the grid on which the codes of a weight lie; `numbers` are those that it was made with."""
    levels = Levels(numbers or quantized.numbers, quantized.scale.dtype, quantized.global_scale)
    in_bytes = scale_types.in_one_byte(levels.scale_dtype)
    scale = levels.scales_of_codes(quantized.scale.view(torch.uint8)) if in_bytes else quantized.scale.float()
    return Grid(levels, scale, None if quantized.zero_point is None else quantized.zero_point.float())


def in_steps(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return a weight [out, in] in steps of its scales, float32: what is rounded to levels less zero points."""
    own_grid = grid.by_row(weight.shape[0])
    steps = torch.empty(weight.shape, device=weight.device)
    group = 0
    for span, size in runs(weight.shape[1], own_grid.levels):
        groups = slice(group, group + (span.stop - span.start) // size)
        group = groups.stop
        steps[:, span] = (grouped(weight[:, span], size) / own_grid.scale[:, groups, None]).flatten(1)
    return steps


def quantize_rtn(
    weight: torch.Tensor,
    levels: Levels,
    method: str = "minmax",
    importance: torch.Tensor | None = None,
    largest: torch.Tensor | None = None,
) -> Quantized:
    """Round one weight [out, in] to nearest, as `quantize.rtn` does. Arguments are those of `make_grid`."""
    return round_to_grid(weight, make_grid(weight, levels, method, importance, largest))


def _choose(
    parts: list[torch.Tensor], costs: torch.Tensor, levels: Levels, search: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and zero points [rows, G] of one chunk of rows, or [1, 1] for all chunks of a tensor.

    parts  the weights of each chunk, [rows, G · size];  costs  [G, size]
    """
    size = costs.shape[1]
    values = [grouped(part, size) for part in parts]
    extremes = [(part.amin(2), part.amax(2)) for part in values]  # a sixth of the time of torch.aminmax
    low, high = (torch.cat(side) for side in zip(*extremes, strict=True))
    if levels.per_tensor:
        low, high = low.amin().view(1, 1), high.amax().view(1, 1)
    top = 2**levels.numbers.bits - 1
    if levels.symmetric:
        full = levels.full_scale(torch.maximum(-low, high))
        zero = torch.full_like(full, levels.middle)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        full = (high - low) / top
        zero = (-low / full.clamp(min=torch.finfo(torch.float32).tiny)).round_().clamp_(0, top)
    # A group of zeros has no range: any scale stores it exactly.
    full = torch.where(full > 0, full, 1.0)
    best = levels.storable(full)
    if not search:
        return best, zero
    least = torch.full_like(best, torch.inf)
    smallest = SMALLEST.get(levels.numbers.bits, SMALLEST_OTHERWISE)
    if levels.numbers.element == "log2":
        smallest = SMALLEST_POWER
    roots = costs.sqrt()
    weighted = [part * roots for part in values]
    if scale_types.in_one_byte(levels.scale_dtype):
        return _sweep(values[0], weighted[0], roots, best, zero, levels), zero
    fresh = torch.empty_like(values[0]), torch.empty_like(values[0])  # reused: new pages cost time
    for step in range(STEPS):
        tried = levels.storable(full * (1 - (1 - smallest) * step / (STEPS - 1)))
        sums = [_moments(w, v, roots, tried, zero, levels, fresh) for w, v in zip(values, weighted, strict=True)]
        a, b, c = (torch.cat(kind) for kind in zip(*sums, strict=True))
        if levels.per_tensor:
            a, b, c = (kind.sum().view(1, 1) for kind in (a, b, c))
        fitted = levels.storable(tried + b / c.clamp(min=torch.finfo(torch.float32).tiny))
        move = fitted - tried
        for scale, error in ((tried, a), (fitted, a - 2 * move * b + move * move * c)):
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, scale, best)
    return best, zero


def _sweep(
    w: torch.Tensor,
    weighted: torch.Tensor,
    roots: torch.Tensor,
    full: torch.Tensor,
    zero: torch.Tensor,
    levels: Levels,
) -> torch.Tensor:
    """Return the best scales [rows, G] among all that one byte holds next to `full`, by Σ h (w − ŵ)².

    With E4M3 they reach from half of the full range to a range that leaves the largest level of E2M1 to no weight: the
    choice between 6 and 4 as the largest level in use ("four over six", Cook et al. 2025) is among them.
    Arguments are those of `_moments`.
    """
    codes = levels.scale_codes(full)
    best, least = full, torch.full_like(full, torch.inf)
    q, r = torch.empty_like(w), torch.empty_like(w)
    for offset in scale_types.NEIGHBOURS[levels.scale_dtype]:
        scale = levels.scales_of_codes(scale_types.moved(codes, offset, levels.scale_dtype))
        levels.nearest_(torch.div(w, scale[..., None], out=q), zero[..., None]).mul_(roots)
        error = vector_norm(torch.addcmul(weighted, q, scale[..., None], value=-1, out=r), dim=2)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, scale, best)
    return best


def _moments(
    w: torch.Tensor,
    weighted: torch.Tensor,
    roots: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    levels: Levels,
    fresh: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return Σ h r², Σ h r q and Σ h q² [rows, G] of each grid.

    q are the nearest levels less the zero point, and r = w − scale · q. With these levels, a scale of `scale + d`
    leaves the error Σ h r² − 2 d Σ h r q + d² Σ h q². `roots` [G, size] are √h, `weighted` is √h w, [rows, G, size] as
    `w`: both factors of every sum are multiplied only once. `fresh` are two buffers of at least that size.
    """
    q, r = (buffer[: w.shape[0]] for buffer in fresh)
    levels.nearest_(torch.div(w, scale[..., None], out=q), zero[..., None]).mul_(roots)
    torch.addcmul(weighted, q, scale[..., None], value=-1, out=r)
    return vector_norm(r, dim=2).square_(), vecdot(q, r), vector_norm(q, dim=2).square_()

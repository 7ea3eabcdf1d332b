"""SignRound (Cheng et al. 2023, arXiv:2309.05516): rounding and scales learned from gradients of a block's output.

A weight becomes s · q with q = nearest(u), the level nearest to a position u = w / s + V, and s = f · s₀ with a range
factor f for each group. Gradients pass rounding as if it were the identity (straight through), so that for a loss L of
the block's output and G = ∂L/∂w̃

    ∂L/∂u = s G        ∂L/∂f = s₀ Σ q G  over a group                                              (1)

SignRound moves each u and each f by a fixed amount against the sign of its gradient; amounts fall to zero in a line.
Scales are moved so here. Positions are moved by a gradient that is scaled instead: the second moment of G_ij is nearly
that of its row times that of its column, r_i² c_j², and c_j² is what an error in column j costs, so that

    u_ij ← u_ij − τ · clip(G_ij / (r_i c_j²))                                                      (2)

is a Newton step up to a factor, which is such that the mean square of what is clipped is 1. With as many steps it
leaves the output of a block with less error than signs do (up to a quarter less where steps are few).

Offsets V are counted in steps of the grid: of integers 1, of floats the distance of levels at the first position. Where
AutoRound keeps w / s and learns the two ends of a range, whose change moves the integers too, here positions stay and
one factor scales the group: symmetric grids have no second end, and the zero point of asymmetric ones, an integer,
stays.

A start need not be w / s: positions of GPTQ are the values that it rounded, a weight and what compensates for the
errors of others, so that integers near a border of rounding are those that GPTQ was undecided about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from runner.methods.quantization_grid import Grid
from runner.methods.weight_parts import CHUNK
from runner.model.checkpoint.quantization.elements import MANTISSA_BITS, SMALLEST_EXPONENT, Levels, codebook
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import AS_WEIGHTS
from runner.model.layerwise.method import Block

CLIP = 3.0  # the most that (2) moves a position, in mean moves
LEAST = 1e-6  # the least second moment of a column that counts, as a share of the mean one
COMPARED = 4  # batches, spread over the data, on which what was learned is compared with the start


@dataclass(frozen=True)
class Schedule:
    """How far positions and scales may move.

    steps   of the optimization
    travel  the most that a position moves in all of them, in steps of the grid
    ranges  the most that a scale moves, as a share of what it is at first; 0: scales stay
    """

    steps: int
    travel: float
    ranges: float

    def rate(self, step: int) -> float:
        """Return the share of the whole way that belongs to a step, from 0 on: they fall in a line and sum to 1."""
        return 2 * (self.steps - step) / (self.steps * (self.steps + 1))


class Rounding:
    """The rounding of one weight while it is learned: positions float32 [out, in], and the scales of their grid.

    `start` are positions in steps of their scale, changed in place; `grid` is the one to which they belong. A position
    that is exactly zero stays, so that pruned weights do.
    """

    def __init__(self, start: torch.Tensor, grid: Grid) -> None:
        self.positions = start
        self.given = grid
        own = grid.by_row(start.shape[0])
        self.levels: Levels = own.levels
        self.zeros = own.zeros()
        self.first = own.scale
        self.scale = own.scale.clone()
        zeros = start == 0
        self.moving = ~zeros if bool(zeros.any()) else None
        self.spacing = None if self.levels.numbers.is_integer else spacing(start, self.levels)
        self.rows, self.columns = (torch.zeros(size, device=start.device) for size in start.shape)
        self.seen = 0
        # Scales of other types or shapes are not one number of a group that may be anything.
        self.fixed = own is not grid or self.levels.per_tensor or self.levels.numbers.scale != AS_WEIGHTS

    def step(self, gradient: torch.Tensor, travel: float, ranges: float) -> None:
        """Move positions by (2), τ = `travel`, and scales by the share `ranges` of their first value; G [out, in]."""
        rows, columns = self._weights(gradient)
        for part, span, groups, size in self._pieces():
            slope = gradient[part, span].to(torch.float32, copy=True)
            positions = self.positions[part, span]
            if ranges and not self.fixed:
                pull = (slope * self._nearest(positions, part, groups, size)).unflatten(1, (-1, size)).sum(-1)
                self.scale[part, groups].sub_(pull.sign_().mul_(self.first[part, groups]), alpha=ranges)
            slope.mul_(rows[part, None]).mul_(columns[span]).clamp_(-CLIP, CLIP)
            if self.moving is not None:
                slope.mul_(self.moving[part, span])
            if self.spacing is not None:
                slope.mul_(self.spacing[part, span])
            positions.sub_(slope, alpha=travel)

    def _weights(self, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return 1 / r [out] and 1 / c² [in] up to a factor, from all gradients so far."""
        for part, span, _, _ in self._pieces():
            squares = gradient[part, span].float().square()
            self.rows[part].add_(squares.sum(1))
            self.columns[span].add_(squares.sum(0))
        self.seen += 1
        tiny = torch.finfo(torch.float32).tiny
        inverse = 1 / (self.columns / self.columns.mean().clamp(min=tiny)).clamp(min=LEAST)
        # Of G_ij² ≈ r_i² c_j² the mean square of G_ij / (r_i c_j²) is that of 1 / c_j.
        return (self.rows / (self.seen * gradient.shape[1])).clamp(min=tiny).rsqrt(), inverse / inverse.mean().sqrt()

    def write(self, weight: torch.Tensor) -> None:
        """Write the weight as its readers will see it into `weight` [out, in] of any floating type."""
        scale = self.scale if self.fixed else self.levels.storable(self.scale)
        for rows, span, groups, size in self._pieces():
            near = self._nearest(self.positions[rows, span], rows, groups, size)
            near.unflatten(1, (-1, size)).mul_(self._of(scale, rows)[:, groups, None])
            weight[rows, span].copy_(near)

    def quantized(self) -> Quantized:
        """Return the weight on its grid."""
        codes = torch.empty(self.positions.shape, dtype=torch.uint8, device=self.positions.device)
        for rows, span, groups, size in self._pieces():
            positions = self.positions[rows, span].clone().unflatten(1, (-1, size))
            codes[rows, span] = self.levels.round_(positions, self._of(self.zeros, rows)[:, groups, None]).flatten(1)
        if self.fixed:
            return self.given.pack(codes)
        return Grid(self.given.levels, self.levels.storable(self.scale), self.given.zero).pack(codes)

    def _nearest(self, positions: torch.Tensor, rows: slice, groups: slice, size: int) -> torch.Tensor:
        near = positions.clone()
        self.levels.nearest_(near.unflatten(1, (-1, size)), self._of(self.zeros, rows)[:, groups, None])
        return near

    def _of(self, shared: torch.Tensor, rows: slice) -> torch.Tensor:
        return shared if self.levels.per_tensor else shared[rows]

    def _pieces(self) -> list[tuple[slice, slice, slice, int]]:
        """Return rows, columns, groups and group size of pieces that stay in the caches on a CPU."""
        rows, columns = self.positions.shape
        size = self.levels.numbers.columns(columns)
        full = columns - columns % size
        height = max(1, CHUNK // columns) if self.positions.device.type == "cpu" else rows
        found = []
        for begin in range(0, rows, height):
            part = slice(begin, min(rows, begin + height))
            if full:
                found.append((part, slice(0, full), slice(0, full // size), size))
            if full < columns:
                found.append((part, slice(full, columns), slice(full // size, None), columns - full))
        return found


def spacing(positions: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Return the distance of neighbouring levels of floats, or of a table, around each position."""
    element = levels.numbers.element
    if levels.numbers.is_codebook:
        table: torch.Tensor = codebook(element, positions.device).levels.unique()
        above = torch.bucketize(positions, table).clamp_(1, len(table) - 1)
        return table[above] - table[above - 1]
    exponent = positions.abs().clamp(2.0 ** SMALLEST_EXPONENT[element], levels.reach).log2().floor()
    return (exponent - MANTISSA_BITS[element]).exp2()


@dataclass(frozen=True)
class Learned:
    """The error of the block on the compared batches before and after learning, and whether it fell."""

    before: float
    after: float
    better: bool


def learn(block: Block, roundings: Mapping[str, Rounding], schedule: Schedule, seed: int) -> Learned:
    """Learn the roundings of the linears of a block, by name, on its batches in an order that `seed` decides.

    The parameters of `block` are left as learned, whether that is better or not.
    """
    spread = min(COMPARED, block.batches)
    compared = [index * block.batches // spread for index in range(spread)]
    before = block.loss(compared)
    for step, batch in enumerate(_order(block.batches, schedule.steps, seed)):
        gradients = block.gradients([batch])
        share = schedule.rate(step)
        for name, rounding in roundings.items():
            rounding.step(gradients[name], share * schedule.travel, share * schedule.ranges)
            rounding.write(block.parameter(name))
    after = block.loss(compared)
    return Learned(before, after, after < before)  # False for NaN


def _order(batches: int, count: int, seed: int) -> list[int]:
    """Return the numbers of `count` batches, all of them once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(batches, generator=generator) for _ in range(-(-count // batches))]
    return [int(index) for index in torch.cat(rounds)[:count]] if rounds else []

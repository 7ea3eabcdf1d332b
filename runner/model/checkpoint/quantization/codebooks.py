"""Codebooks: elements whose levels are a table. Imports no torch.

nf4   the quantiles of a normal distribution (NormalFloat4; Dettmers et al. 2023, arXiv:2305.14314)
fp4   sign, 2 bits of exponent and 1 of mantissa, as bitsandbytes has them: its levels are not those of E2M1
log2  powers of two, with zero: 0, ±1, ±2, … ±64 times the scale. They are integers of 8 bits, and stored as such
"""

from __future__ import annotations

from dataclasses import dataclass

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)  # of codes 0 to 7; 8 to 15 are their negatives
_POWERS = tuple(float(1 << exponent) for exponent in range(7))


@dataclass(frozen=True)
class Codebook:
    """A table of levels, from the lowest to the highest, and the code of each."""

    levels: tuple[float, ...]
    codes: tuple[int, ...]

    @property
    def largest(self) -> float:
        return max(self.levels[-1], -self.levels[0])


def _by_code(values: tuple[float, ...]) -> Codebook:
    """The codebook whose code i stands for values[i]."""
    order = sorted(range(len(values)), key=lambda code: values[code])
    return Codebook(tuple(values[code] for code in order), tuple(order))


_INTEGERS = (*(-power for power in reversed(_POWERS)), 0.0, *_POWERS)
CODEBOOKS = {
    "nf4": _by_code(_NF4),
    "fp4": _by_code((*_FP4, *(-value for value in _FP4))),
    "log2": Codebook(_INTEGERS, tuple(128 + int(level) for level in _INTEGERS)),
}

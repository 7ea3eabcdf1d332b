"""How far a metric is known: the values of single windows or questions of which it is made.

A kind declares it in `NOISE`, by the names in `METRICS`, and its results have the values in `details["samples"]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Noise:
    """A metric is the mean of the values `samples`, or its exponential; None: they are named as the metric is.

    `unit` is what one value is of: "windows", "questions". `is_share`: a value is 0 or 1.
    """

    samples: str | None = None
    exponential: bool = False
    unit: str = "windows"
    is_share: bool = False


WINDOW_MEAN = Noise()


def rounded(values: Iterable[float]) -> list[float]:
    """Return the values as a record keeps them: eight significant digits, more than any window is known to."""
    return [float(f"{value:.8g}") for value in values]

"""A plot of points over two measured axes, with a line through some of them: the Pareto front of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runner.report.html.markup import join, tag
from runner.report.html.plots import Drawing, Format, Mark, round_ticks

_LETTER = 6.6


@dataclass(frozen=True)
class Axis:
    """A labelled axis, and how its values are written."""

    label: str
    format: Format


def scatter(points: Sequence[Mark], front: Sequence[Mark], best: Mark | None, width: int, x: Axis, y: Axis) -> Drawing:
    """Draw `points` as dots, `front` as larger ones joined by a line, and `best` with a ring."""
    height, bottom, top = 320.0, 268.0, 28.0
    everything = [*points, *front, *([best] if best is not None else [])]
    x_low, x_high = _padded([mark.x for mark in everything])
    y_low, y_high = _padded([mark.y for mark in everything])
    y_ticks = round_ticks(y_low, y_high)
    left = max(len(y.format(tick)) for tick in y_ticks) * _LETTER + 12

    def across(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (width - left - 12)

    def up(value: float) -> float:
        return bottom - (value - y_low) / (y_high - y_low) * (bottom - top)

    parts = [tag("text", y.label, x=left, y=12, class_="label")]
    for tick in y_ticks:
        parts.append(tag("line", x1=left, x2=width, y1=up(tick), y2=up(tick), class_="rule"))
        parts.append(tag("text", y.format(tick), x=left - 6, y=up(tick) + 4, class_="tick end"))
    parts += [
        tag("text", x.format(tick), x=across(tick), y=bottom + 18, class_="tick middle")
        for tick in round_ticks(x_low, x_high, 5 if width > 500 else 3)
    ]
    parts.append(tag("text", x.label, x=left + (width - left) / 2, y=height - 10, class_="tick middle"))
    if len(front) > 1:
        path = " ".join(f"{across(mark.x):.1f},{up(mark.y):.1f}" for mark in sorted(front, key=lambda mark: mark.x))
        parts.append(tag("polyline", points=path, class_="line"))
    for marks, radius, tone in ((points, 3.5, "quiet"), (front, 5.0, "accent")):
        parts += [
            tag("circle", tag("title", mark.text), cx=across(mark.x), cy=up(mark.y), r=radius, class_=tone)
            for mark in marks
        ]
    if best is not None:
        ring = tag("title", f"best: {best.text}")
        parts.append(tag("circle", ring, cx=across(best.x), cy=up(best.y), r=9, class_="ring"))
    return Drawing(math.ceil(height), join(parts))


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    return low - pad, high + pad

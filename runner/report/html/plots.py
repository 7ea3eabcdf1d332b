"""Plots as SVG: bars, dots, columns, cells, curves. Colours are CSS classes of the page's style sheet.

Every plot is drawn twice, for a wide page and for a phone, and the style sheet shows one of them, so that the font size
is the same. Every mark has its value as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from runner.report.html.markup import Markup, join, tag

WIDE, NARROW = 720, 330
_LETTER = 6.6  # approximate width of a letter of a label, in pixels
_ROW = 30
Format = Callable[[float], str]


@dataclass(frozen=True)
class Row:
    """A labelled value; None where not known. `tone` is a CSS class: "accent", "quiet", "good", "bad"."""

    label: str
    value: float | None
    text: str
    tone: str = "accent"


@dataclass(frozen=True)
class Mark:
    """A point of a plot; `text` is its tooltip."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Drawing:
    """The content of an SVG, and its height."""

    height: int
    content: Markup


def both(draw: Callable[[int], Drawing], label: str) -> Markup:
    """Draw the plot for a wide page and for a phone; `label` describes it to screen readers."""
    return join(_svg(draw(WIDE), WIDE, "wide", label), _svg(draw(NARROW), NARROW, "narrow", label))


def _svg(drawn: Drawing, width: int, kind: str, label: str) -> Markup:
    return tag(
        "svg", drawn.content, viewBox=f"0 0 {width} {drawn.height}", class_=f"plot {kind}", role="img",
        aria_label=label, width=width, height=drawn.height,
    )  # fmt: skip


def _drawing(height: float, parts: Sequence[Markup]) -> Drawing:
    return Drawing(math.ceil(height), join(parts))


def bars(rows: Sequence[Row], width: int) -> Drawing:
    """Draw one horizontal bar for each row, from zero; the label to the left, or above where there is no room."""
    return _rows(rows, width, dots=False, limit=None)


def dots(rows: Sequence[Row], width: int, limit: Row | None = None) -> Drawing:
    """Draw one dot for each row on a scale that need not begin at zero, and a dashed line at `limit`."""
    return _rows(rows, width, dots=True, limit=limit)


def _rows(rows: Sequence[Row], width: int, *, dots: bool, limit: Row | None) -> Drawing:
    narrow = width < 500
    side = 0 if narrow else min(220.0, max(len(row.label) for row in rows) * _LETTER + 16)
    tail = max(len(row.text) for row in rows) * _LETTER + 14
    step = _ROW + (16 if narrow else 0)
    left, right = side + 8, width - tail - 4
    known = [row.value for row in [*rows, *([limit] if limit else [])] if row.value is not None]
    low, high = (min(known), max(known)) if dots else (0.0, max(known, default=0.0))
    pad = (high - low) * 0.08 or abs(high) * 0.08 or 1.0
    low, high = (low - pad, high + pad) if dots else (0.0, high or 1.0)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    head = 20 if limit is not None else 0
    parts = []
    for number, row in enumerate(rows):
        y = head + number * step + (16 if narrow else 0)
        middle = y + 13
        if narrow:
            parts.append(tag("text", _cut(row.label, width - 10), x=left, y=y - 1, class_="label"))
        else:
            parts.append(tag("text", _cut(row.label, side), x=side, y=middle + 4.5, class_="label end"))
        if row.value is None:
            parts.append(tag("text", row.text, x=left + 6, y=middle + 4.5, class_="value quiet"))
            continue
        x = place(row.value)
        parts.append(tag("line", x1=left, x2=right if dots else left, y1=middle, y2=middle, class_="rule"))
        if dots:
            mark = tag("circle", tag("title", f"{row.label}: {row.text}"), cx=x, cy=middle, r=6, class_=row.tone)
        else:
            box = {"x": left, "y": y + 4, "width": max(1.5, x - left), "height": 18, "rx": 3}
            mark = tag("rect", tag("title", f"{row.label}: {row.text}"), class_=row.tone, **box)
        parts += [mark, tag("text", row.text, x=(right if dots else x) + 8, y=middle + 4.5, class_="value")]
    height = head + len(rows) * step + 4
    if limit is not None and limit.value is not None:
        x = place(limit.value)
        anchor = "end" if x > width / 2 else ""
        parts.insert(0, tag("line", x1=x, x2=x, y1=head - 4, y2=height, class_="limit"))
        parts.append(tag("text", limit.text, x=x, y=12, class_=f"label {anchor}".strip()))
    return _drawing(height, parts)


def columns(
    values: Sequence[Mark],
    width: int,
    format_value: Format,
    *,
    x_label: str,
    ghosts: Sequence[Mark] = (),
    tops: Sequence[Mark] = (),
) -> Drawing:
    """Draw one column for each layer, from zero, over pale columns (`ghosts`), under strokes for the worst (`tops`)."""
    height, bottom = 210.0, 170.0
    high = max((mark.y for mark in (*values, *ghosts, *tops)), default=0.0) or 1.0
    ticks = round_ticks(0.0, high)
    left = max(len(format_value(tick)) for tick in ticks) * _LETTER + 12
    top_value = max(ticks[-1], high)
    numbers = sorted({int(mark.x) for mark in (*values, *ghosts, *tops)})
    slot = (width - left - 6) / max(1, len(numbers))
    thick = max(1.0, min(34.0, slot * 0.72))

    def centre(mark: Mark) -> float:
        return left + (numbers.index(int(mark.x)) + 0.5) * slot

    def up(value: float) -> float:
        return bottom - value / top_value * (bottom - 14)

    parts = [*_grid(ticks, up, left, width, format_value)]
    for marks, tone in ((ghosts, "ghost"), (values, "accent")):
        for mark in marks:
            box = {
                "x": centre(mark) - thick / 2,
                "y": up(mark.y),
                "width": thick,
                "height": max(1.0, bottom - up(mark.y)),
            }
            parts.append(tag("rect", tag("title", mark.text), class_=tone, **box))
    for mark in tops:
        ends = {"x1": centre(mark) - thick / 2, "x2": centre(mark) + thick / 2, "y1": up(mark.y), "y2": up(mark.y)}
        parts.append(tag("line", tag("title", mark.text), class_="worst", **ends))
    every = max(1, math.ceil(len(numbers) * 26 / (width - left)))
    parts += [
        tag("text", str(number), x=left + (place + 0.5) * slot, y=bottom + 16, class_="tick middle")
        for place, number in enumerate(numbers)
        if place % every == 0
    ]
    parts.append(tag("text", x_label, x=left + (width - left) / 2, y=height - 6, class_="tick middle"))
    return _drawing(height, parts)


def cells(
    names: Sequence[str], columns: Sequence[int], values: dict[tuple[str, int], float], width: int, format_value: Format
) -> Drawing:
    """Draw a row for each name and a column for each number; larger values are darker, missing ones empty."""
    side = min(width * 0.42, max(map(len, names)) * _LETTER + 10)
    slot = min(36.0, (width - side - 4) / max(1, len(columns)))
    high = max(values.values(), default=0.0) or 1.0
    parts = []
    for row, name in enumerate(names):
        y = row * 24
        parts.append(tag("text", _cut(name, side), x=side - 6, y=y + 16, class_="label end"))
        for place, number in enumerate(columns):
            box = {
                "x": side + place * slot,
                "y": y + 2,
                "width": max(1.0, slot - (2 if slot > 6 else 0.4)),
                "height": 20,
            }
            value = values.get((name, number))
            if value is None:
                parts.append(tag("rect", class_="empty", **box))
            else:
                title = tag("title", f"layer {number}, {name}: {format_value(value)}")
                shade = 0.08 + 0.92 * math.sqrt(max(0.0, value) / high)
                parts.append(tag("rect", title, class_="accent", fill_opacity=round(shade, 3), **box))
    bottom = len(names) * 24
    every = max(1, math.ceil(26 / slot))
    parts += [
        tag("text", str(number), x=side + (place + 0.5) * slot, y=bottom + 16, class_="tick middle")
        for place, number in enumerate(columns)
        if place % every == 0
    ]
    parts.append(tag("text", "layer", x=side - 6, y=bottom + 16, class_="tick end"))
    return _drawing(bottom + 22, parts)


def lines(
    curve: Sequence[Mark],
    points: Sequence[Mark],
    width: int,
    format_value: Format,
    *,
    x_label: str,
    at: Mark | None = None,
) -> Drawing:
    """Draw a curve, separate points, and a dashed vertical line at `at`."""
    height, bottom, top = 230.0, 188.0, 16.0
    everything = [*curve, *points]
    low, high = min(mark.y for mark in everything), max(mark.y for mark in everything)
    pad = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    ticks = round_ticks(low - pad, high + pad)
    low, high = min(low - pad, ticks[0]), max(high + pad, ticks[-1])
    first, last = min(mark.x for mark in everything), max(mark.x for mark in everything)
    left = max(len(format_value(tick)) for tick in ticks) * _LETTER + 12

    def across(value: float) -> float:
        return left + 8 + (value - first) / ((last - first) or 1.0) * (width - left - 20)

    def up(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = [*_grid(ticks, up, left, width, format_value)]
    if at is not None:
        x = across(at.x)
        anchor = "end" if x > width / 2 else ""
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="limit"))
        parts.append(tag("text", at.text, x=x + (-5 if anchor else 5), y=top + 8, class_=f"label {anchor}".strip()))
    path = " ".join(f"{across(mark.x):.1f},{up(mark.y):.1f}" for mark in curve)
    parts.append(tag("polyline", points=path, class_="line"))
    if len(curve) <= 60:
        parts += [
            tag("circle", tag("title", mark.text), cx=across(mark.x), cy=up(mark.y), r=2.2, class_="accent")
            for mark in curve
        ]
    parts += [
        tag("circle", tag("title", mark.text), cx=across(mark.x), cy=up(mark.y), r=5, class_="second")
        for mark in points
    ]
    for tick in round_ticks(first, last, 6 if width > 500 else 4):
        if first <= tick <= last and float(tick).is_integer():
            parts.append(tag("text", f"{tick:g}", x=across(tick), y=bottom + 16, class_="tick middle"))
    parts.append(tag("text", x_label, x=left + (width - left) / 2, y=height - 6, class_="tick middle"))
    return _drawing(height, parts)


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers from `low` to `high`, the first at most one step below, the last not above."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(math.floor(high / step + 1e-9) - first + 1)] or [low]


def _grid(
    ticks: Sequence[float], up: Callable[[float], float], left: float, width: int, format_value: Format
) -> Iterator[Markup]:
    for tick in ticks:
        yield tag("line", x1=left, x2=width, y1=up(tick), y2=up(tick), class_="rule")
        yield tag("text", format_value(tick), x=left - 6, y=up(tick) + 4, class_="tick end")


def _cut(text: str, room: float) -> str:
    letters = max(4, int(room / _LETTER))
    return text if len(text) <= letters else text[: letters - 1] + "…"

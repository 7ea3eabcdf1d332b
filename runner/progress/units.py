"""Format numbers for people: times, sizes, metrics, and rows of numbers as sparklines."""

from __future__ import annotations

import math
from collections.abc import Iterable

BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """Format a duration: `0.4 s`, `12.3 s`, `2 min 05 s`, `3 h 07 min`."""
    if not math.isfinite(seconds):
        return "?"
    seconds = max(0.0, seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def rate(seconds: float) -> str:
    """Format a rate: `0.05 s/layer`, `1.8 s/layer`, `2 min 05 s/layer`."""
    return f"{seconds:.2f} s/layer" if seconds < 0.995 else f"{duration(seconds)}/layer"


def about(seconds: float) -> str:
    """Format an estimated time, rounded: `< 1 s`, `~12 s`, `~4 min`, `~3.5 h`, `~2 days`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 1:
        return "< 1 s"
    if seconds < 90:
        return f"~{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"~{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"~{seconds / 3600:.1f} h"
    return f"~{seconds / 86400:.0f} days"


def clock(seconds: float) -> str:
    """Format a running clock, or the time that is left: `0:07`, `12:30`, `1:02:03`."""
    hours, rest = divmod(max(0, round(seconds)), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def size(count: float) -> str:
    """Format bytes in decimal units and three digits: `0 B`, `812 kB`, `1.53 GB`, `48.2 GB`, `130 GB`."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def count(value: float) -> str:
    """Format a count in three digits: `512`, `68.3 k`, `1.24 M`, `7.24 B` (billions)."""
    return _scaled(value, ("", "k", "M", "B", "T")).rstrip()


def _scaled(value: float, names: tuple[str, ...]) -> str:
    scaled, index = float(value), 0
    while scaled >= 999.5 and index < len(names) - 1:
        scaled, index = scaled / 1000, index + 1
    decimals = 0 if index == 0 or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{decimals}f} {names[index]}"


def number(value: object) -> str:
    """Format a metric: integers in full, other numbers with five significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.5g}"


# Counts, which are no measurements: they are in records and JSON, but left out of short texts.
COUNTS = frozenset({"tokens", "windows", "modules"})


def metrics(values: Iterable[tuple[str, object]]) -> str:
    """Format metrics: `perplexity 15.523, size 3.51 MB`."""
    return ", ".join(metric(name, value) for name, value in shown(values))


def shown(values: Iterable[tuple[str, object]]) -> list[tuple[str, object]]:
    """Return the metrics without counts, and without the loss where there is a perplexity."""
    known = dict(values)
    hidden = COUNTS | ({"loss"} if "perplexity" in known else set())
    return [(name, value) for name, value in known.items() if name not in hidden]


def metric(name: str, value: object) -> str:
    """Format a metric: `perplexity 15.523`; a number of bytes as a size."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name == "bytes":
            return f"size {size(value)}"
        if name in ("memory", "gpu_memory") or name.endswith("_bytes"):
            return f"{name.removesuffix('_bytes').replace('_', ' ')} {size(value)}"
        if name.endswith("_seconds"):
            return f"{name.removesuffix('_seconds').replace('_', ' ')} {duration(value)}"
        if name.endswith("_per_second"):
            return f"{name.removesuffix('_per_second').replace('_', ' ')}/s {count(value)}"
    return f"{name.replace('_', ' ')} {number(value)}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def sparkline(values: Iterable[float | None], width: int = 40, bars: str = BARS) -> str:
    """Return one bar character for each value, scaled from zero to the largest; more than `width` values are averaged.

    Values that are missing or not finite show as a space or `!`.
    """
    row = list(values)
    if len(row) > width:
        row = [_mean(row[i * len(row) // width : (i + 1) * len(row) // width]) for i in range(width)]
    finite = [v for v in row if v is not None and math.isfinite(v)]
    top = max(finite, default=0.0)
    text = ""
    for value in row:
        if value is None:
            text += " "
        elif not math.isfinite(value):
            text += "!"
        else:
            text += bars[0 if top <= 0 else min(len(bars) - 1, max(0, int(value / top * len(bars))))]
    return text


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None

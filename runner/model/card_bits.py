"""The section of a model card on which modules have how many bits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def section(bits: Mapping[str, int]) -> list[str]:
    """Return the section of a card on which modules have how many bits; none where all have the same."""
    if len(set(bits.values())) < 2:
        return []
    places: dict[int, dict[str, list[int]]] = {}
    for module, each in bits.items():
        number = re.search(r"\.(\d+)\.", module)
        place = module[number.end() :] if number else module
        layers = places.setdefault(each, {}).setdefault(re.sub(r"\.\d+\.", ".*.", place), [])
        if number:
            layers.append(int(number[1]))
    rows = [
        f"| {each} | {'; '.join(_of_layers(place, layers) for place, layers in sorted(places[each].items()))} |"
        for each in sorted(places)
    ]
    return ["## Bits of each module", "\n".join(["| bits | modules |", "|---|---|", *rows])]


def _of_layers(place: str, layers: Sequence[int]) -> str:
    """Return "`mlp.down_proj` of layers 0, 2–5": runs of numbers are joined."""
    numbers = sorted(set(layers))
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)
    return f"`{place}`" + (f" of layer{'s' if len(numbers) > 1 else ''} {text}" if text else "")

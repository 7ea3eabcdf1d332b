"""How many units of each axis stay, by the parameters of `prune.width`. Imported by the planner: no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runner.contracts.context import Params
from runner.errors import Diagnostic
from runner.model.architecture.units import AXES, FEED_FORWARD, GROUPS, HEADS, HIDDEN, Widths

_NOUNS = {FEED_FORWARD: "neurons", HEADS: "heads", GROUPS: "heads of keys and values", HIDDEN: "channels"}


def asked(params: Params) -> list[str]:
    """Return the axes that a step cuts, by its parameters alone."""
    return [axis for axis in AXES if params.get(axis)]


def wanted(params: Params, before: Widths) -> tuple[Widths, list[Diagnostic]]:
    """Return the widths that a model of the widths `before` gets, and complaints about what cannot be.

    A share is rounded to the nearest count that is allowed; a count is taken as it is.
    """
    found = [
        complaint for axis in AXES
        if params.get(axis) and (complaint := _out_of_range(axis, params[axis], before.of(axis))) is not None
    ]  # fmt: skip
    if found:
        return before, found
    hidden = params.get(HIDDEN)
    channels = (
        before.hidden_size if not hidden else None if _is_share(hidden) else _count(hidden, before.hidden_size, 1)
    )
    after, found = _heads(params, before, channels if before.divided else None)
    multiple = params["multiple_of"]
    for axis, own in ((FEED_FORWARD, multiple), (HIDDEN, math.lcm(multiple, after.heads if before.divided else 1))):
        if params.get(axis):
            total = before.of(axis)
            complaint = _undivided(axis, params, total, own if _is_share(params[axis]) else multiple)
            found += [complaint] if complaint is not None else []
            count = _count(params[axis], total, own)
            after = replace(after, hidden_size=count) if axis == HIDDEN else replace(after, feed_forward=count)
    if not found and before.divided and after.hidden_size % after.heads:
        message = (
            f"`hidden_size` leaves {after.hidden_size} channels, which {after.heads} heads do not divide; {_STRICT}"
        )
        help = f"keep a multiple of {math.lcm(multiple, after.heads)}"
        found.append(Diagnostic("R804", message, help, path=(HIDDEN,)))
    return after, found


_STRICT = "transformers refuses such a configuration of this type"


def _heads(params: Params, before: Widths, channels: int | None) -> tuple[Widths, list[Diagnostic]]:
    """Return the heads and their groups: `key_value_heads` leaves out groups, `heads` the same number in each.

    The heads must divide `channels`, unless it is None.
    """
    heads, groups = params.get(HEADS), params.get(GROUPS)
    if before.group == 1 and heads and groups:
        message = "`heads` and `key_value_heads` are both given of a model whose heads share no keys and values"
        return before, [Diagnostic("R803", message, "leave one of them out", path=(GROUPS,))]
    if before.group == 1 or not heads:
        axis, spec = (HEADS, heads) if heads else (GROUPS, groups)
        if not spec:
            return before, []
        allowed = [n for n in range(1, before.key_value_heads) if not channels or channels % (n * before.group) == 0]
        count = _nearest(spec, before.key_value_heads, allowed)
        after = replace(before, heads=count * before.group, key_value_heads=count)
        return after, [] if count in allowed else [_not_divided(axis, after, channels or 0, allowed)]
    stay = _count(groups, before.key_value_heads, 1) if groups else before.key_value_heads
    shared = [stay * size for size in range(1, before.group + (stay < before.key_value_heads))]
    allowed = [count for count in shared if not channels or channels % count == 0]
    count = _nearest(heads, before.heads, allowed)
    after = replace(before, heads=count, key_value_heads=stay)
    if count in allowed:
        return after, []
    if count in shared:
        return after, [_not_divided(HEADS, after, channels or 0, allowed)]
    message = f"`heads` leaves {count} of {before.heads} heads in {before.key_value_heads} groups"
    message += f", of which {stay} stay" if groups else ""
    help = f"keep {_either(allowed)}" if allowed else "leave out groups with `key_value_heads`"
    return after, [Diagnostic("R803", f"{message}; each group must keep the same number", help, path=(HEADS,))]


def _not_divided(axis: str, after: Widths, channels: int, allowed: list[int]) -> Diagnostic:
    message = f"`{axis}` leaves {after.heads} heads, which do not divide {channels} channels; {_STRICT}"
    help = f"keep {_either(allowed)}" if allowed else "cut `feed_forward` or `hidden_size` instead"
    return Diagnostic("R803", message, help, path=(axis,))


def _nearest(spec: Mapping[str, Any], total: int, allowed: list[int]) -> int:
    """Return the count of `spec`; of a share, the nearest that is allowed, if any is."""
    count = _count(spec, total, 1)
    if not (_is_share(spec) and allowed):
        return count
    key, value = next(iter(spec.items()))
    part: float = total * (value if key == "keep" else 1 - value)
    return min(allowed, key=lambda each: (abs(each - part), each))


def _out_of_range(axis: str, spec: Mapping[str, Any], total: int) -> Diagnostic | None:
    """Return a complaint about a count that is more than there are, or that leaves all or none."""
    key, value = next(iter(spec.items()))
    noun = _NOUNS[axis]
    limit = total if key == "keep" else total - 1
    if _is_share(spec) or (value <= limit and not (key == "keep" and value == total)):
        return (
            None if total > 1 else Diagnostic("R802", f"the model has one of its {noun}", "leave it out", path=(axis,))
        )
    verb = "keeps" if key == "keep" else "leaves out"
    message = f"`{axis}` {verb} {value} of {total} {noun}"
    return Diagnostic("R802", message, f"{'keep' if key == 'keep' else 'drop'} 1 to {total - 1}", path=(axis, key))


def _undivided(axis: str, params: Params, total: int, multiple: int) -> Diagnostic | None:
    """Return a complaint about a count that is no multiple, or where no smaller multiple is there."""
    spec, noun = params[axis], _NOUNS[axis]
    if total <= multiple:
        own = params["multiple_of"]
        alone = (
            f"`multiple_of` {own} leaves" if own == multiple else f"`multiple_of` {own} and the number of heads leave"
        )
        message = f"{alone} nothing to cut of {total} {noun}"
        return Diagnostic("R804", message, "lower `multiple_of`", path=("multiple_of",))
    if _is_share(spec):
        return None
    key, value = next(iter(spec.items()))
    stay = value if key == "keep" else total - value
    if stay % multiple == 0:
        return None
    below = stay // multiple * multiple
    near = [each for each in (below, below + multiple) if 0 < each < total]
    counts = _either(near if key == "keep" else sorted(total - each for each in near))
    message = f"`{axis}` leaves {stay} of {total} {noun}, which `multiple_of` {multiple} does not divide"
    return Diagnostic("R804", message, f"{key} {counts}, or lower `multiple_of`", path=(axis, key))


def _count(spec: Mapping[str, Any], total: int, multiple: int) -> int:
    """Return how many units stay; of a share, the nearest multiple below all of them."""
    key, value = next(iter(spec.items()))
    if not _is_share(spec):
        return int(value if key == "keep" else total - value)
    part: float = total * (value if key == "keep" else 1 - value)
    most = (total - 1) // multiple * multiple
    return max(multiple, min(most, round(part / multiple) * multiple))


def _is_share(spec: Mapping[str, Any]) -> bool:
    return all(value < 1 for value in spec.values())


def _either(counts: list[int]) -> str:
    return " or ".join(map(str, counts))

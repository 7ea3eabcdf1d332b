"""From the linears of one group and their statistics to new weights: stacking, the method, splitting, installing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.layerwise.method import Linear, Method, Options, Statistics, Transformed
from runner.model.layerwise.process_group import ProcessGroup

Weights = Mapping[str, torch.Tensor]  # module's name in the checkpoint → weight [out, in], in the type it is stored in


def transform_group(
    method: Method,
    weights: Weights,
    seen: Statistics,
    largest: Callable[[str], torch.Tensor],
    fallback: bool = False,
) -> dict[str, Transformed]:
    """Transform linears that see one input. Linears that the method has no options for are absent from the result.

    `largest` gives the largest |weight| of a module, which need not be one of `weights`. With `fallback` the method
    does without statistics, where it can.
    """
    transform = (fallback and method.fallback) or method.transform
    done: dict[str, Transformed] = {}
    for names, own in teams(method, weights):
        as_stored = method.statistics == "none" and len(names) == 1
        stacked = weights[names[0]] if as_stored else torch.cat([weights[name].float() for name in names])
        sharing = sorted({other for name in names for other in (name, *method.shares_scale.get(name, ()))})
        top = torch.stack([largest(name) for name in sharing]).amax() if names[0] in method.shares_scale else None
        linear = Linear(tuple(names), stacked, weights[names[0]].dtype, top)
        done |= split(names, weights, transform(linear, seen, own))
    return done


def transform_together(
    method: Method,
    weights: Weights,
    seen: Statistics | None,
    largest: Callable[[str], torch.Tensor],
    group: ProcessGroup,
) -> dict[str, Transformed]:
    """Transform linears that see one input in all processes: those that are solved together in one process each, in

    turn. `seen` are the statistics, None in all processes but the first.
    """
    found = [names for names, _ in teams(method, weights)]
    if group.count == 1 and seen is not None:
        return transform_group(method, weights, seen, largest)
    if len(found) > 1:
        seen = group.broadcast(seen)
    done: dict[str, Transformed] = {}
    own = {}
    for number, names in enumerate(found):
        if number % group.count == group.rank and seen is not None:
            own[number] = transform_group(method, {name: weights[name] for name in names}, seen, largest)
    for number in range(len(found)):
        done |= group.broadcast(own.get(number), number % group.count)
    return done


def teams(method: Method, weights: Weights) -> list[tuple[list[str], Options]]:
    """Which linears are solved together, with their options: if the method stacks, all with equal options that are

    stored in the same type, else each.
    """
    found: list[tuple[list[str], Options]] = []
    for name, weight in weights.items():
        own = method.options.get(name)
        if own is None:
            continue
        team = (
            next((t for t, p in found if p == own and weights[t[0]].dtype == weight.dtype), None)
            if method.stacked
            else None
        )
        if team is None:
            found.append(([name], own))
        else:
            team.append(name)
    return found


def split(names: Sequence[str], weights: Weights, whole: Transformed) -> dict[str, Transformed]:
    """Give each module its rows of a stacked result. Metrics are those of the stack."""
    if len(names) == 1:
        return {names[0]: whole}
    sizes = [weights[name].shape[0] for name in names]
    done, start = {}, 0
    for name, size in zip(names, sizes, strict=True):
        rows = slice(start, start + size)
        start += size
        if whole.quantized is not None:
            positions = None if whole.positions is None else whole.positions[rows]
            done[name] = replace(whole, quantized=take_rows(whole.quantized, rows), positions=positions)
        elif whole.weight is not None:
            done[name] = replace(whole, weight=whole.weight[rows])
    return done


def take_rows(q: Quantized, rows: slice) -> Quantized:
    zero = None if q.zero_point is None else q.zero_point[rows].contiguous()
    return replace(q, codes=q.codes[rows].contiguous(), scale=q.scale[rows].contiguous(), zero_point=zero)


def dense(result: Transformed, stored: torch.dtype) -> torch.Tensor:
    """The weight [out, in] as a reader of the written checkpoint will see it."""
    if result.quantized is not None:
        return result.quantized.dequantize(stored)
    if result.weight is None:
        raise ValueError("a method gives back a weight or a quantized one")
    return result.weight.to(stored)

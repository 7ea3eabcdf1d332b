"""`dense: auto` of `build.gguf`: the type of each matrix within a budget. Imported by the planner: no torch, no gguf.

    - build.gguf: {dense: auto, data: calibration, budget: {average_bits: 4.5}}

Each matrix that the checkpoint does not hold as integers gets one of `candidates`, or what llama.cpp takes in place of
it for its columns. Σ loss is least within the budget; runner/methods/knapsack.py solves that exactly. The loss of a
matrix is Σ_j E[x_j²] ‖ΔW_j‖² / Σ_j E[x_j²] ‖W_j‖², the relative error of its outputs for inputs that do not correlate,
times what `sensitivity` says that such an error costs the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.sensitivity import Sensitivity
from runner.contracts.step_kind import Inputs, Params
from runner.errors import Diagnostic, StepFailed
from runner.export import gguf_types
from runner.export.gguf_tensors import Entry, entries
from runner.methods import knapsack

SENSITIVITY, BUDGET, CANDIDATES = OWN = ("sensitivity", "budget", "candidates")
DEFAULT = ("q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
AVERAGE, BYTES = "average_bits", "bytes"


@dataclass(frozen=True)
class Choices:
    """What there is to choose. `options` are the types that each of `entries` can have, in rising size.

    `fixed` is the bytes of all other tensors of the file.
    """

    entries: tuple[Entry, ...]
    options: tuple[tuple[str, ...], ...]
    fixed: int

    @property
    def costs(self) -> list[list[int]]:
        """Entry → option → bytes."""
        return [
            [gguf_types.nbytes(type, math.prod(entry.shape)) for type in types]
            for entry, types in zip(self.entries, self.options, strict=True)
        ]

    @property
    def weights(self) -> int:
        return sum(math.prod(entry.shape) for entry in self.entries)

    def limit(self, budget: Params) -> int:
        """Return the bytes that a budget leaves to the entries."""
        if AVERAGE in budget:
            return math.floor(float(budget[AVERAGE]) * self.weights / 8)
        from runner.model.checkpoint.writer import parse_size

        return parse_size(budget[BYTES]) - self.fixed


@dataclass(frozen=True)
class Assignment:
    """The type of each tensor by its name in the file, the forecast loss in `unit`, and the average bits."""

    types: Mapping[str, str]
    loss: float
    unit: str
    average_bits: float

    def document(self) -> dict[str, Any]:
        return {
            "types": dict(self.types), "loss": self.loss, "unit": self.unit,
            "average_bits": round(self.average_bits, 4),
        }  # fmt: skip


def is_auto(params: Params) -> bool:
    return params.get("dense") == gguf_types.AUTO


def choices(params: Params, found: Sequence[Entry]) -> Choices:
    """Return the choices among the entries of a file: all matrices of layers that are neither integers nor float32."""
    free = tuple(entry for entry in found if entry.wanted == gguf_types.AUTO)
    options = tuple(_options(entry.shape[-1], params.get(CANDIDATES) or DEFAULT) for entry in free)
    return Choices(free, options, sum(entry.nbytes for entry in found) - sum(entry.nbytes for entry in free))


def _options(columns: int, candidates: Sequence[str]) -> tuple[str, ...]:
    fitted = {gguf_types.fitting(type, columns) for type in candidates}
    return tuple(sorted(fitted, key=lambda type: (gguf_types.nbytes(type, 256), type)))


def check(params: Params, inputs: Inputs, tied: bool) -> list[Diagnostic]:
    """Return complaints about `dense: auto`, or about parameters of it where there is none."""
    if not is_auto(params):
        given = [name for name in OWN if name in params]
        message = f"`{given[0] if given else ''}` belongs to `dense: auto`, and `dense` is {params['dense']}"
        return [Diagnostic("R853", message, "leave it out, or set `dense: auto`", path=(given[0],))] if given else []
    missing = [name for name in ("data", BUDGET) if params.get(name) is None]
    if missing:
        message = f"`dense: auto` needs {' and '.join(f'`{name}`' for name in missing)}"
        help = "name a calibration text, and a budget such as `{average_bits: 4.5}`"
        return [Diagnostic("R853", message, help, path=("dense",))]
    found = choices(params, entries(inputs.checkpoint, params, tied=tied)[0])
    if not found.entries:
        message = "`dense: auto` has nothing to choose: the checkpoint holds integers of every matrix"
        return [Diagnostic("R853", message, "leave `dense` out", path=("dense",))]
    return _budget(params, found) + _measured(params, inputs, found)


def _budget(params: Params, found: Choices) -> list[Diagnostic]:
    """Return a complaint about a budget that nothing meets, or a warning about one that excludes nothing."""
    least, most = (sum(pick(row) for row in found.costs) for pick in (min, max))
    limit, (key, value) = found.limit(params[BUDGET]), next(iter(params[BUDGET].items()))
    given = f"{value:g}" if key == AVERAGE else value

    def shown(cost: int) -> str:
        if key == AVERAGE:
            return f"{math.ceil(8000 * cost / found.weights - 1e-9) / 1000:g}"
        return f"{math.ceil((found.fixed + cost) / 1e4) / 100:.2f}MB"

    if limit < least:
        message = f"`{key}: {given}` is less than any assignment takes: the smallest candidates are {shown(least)}"
        help = f"set `{key}` to {shown(least)} or more, or give smaller candidates"
        return [Diagnostic("R854", message, help, path=(BUDGET, key))]
    if limit >= most:
        message = f"`{key}: {given}` allows the largest candidate everywhere, which is {shown(most)}"
        help = "set a budget below that, or `dense` to a type"
        return [Diagnostic("R855", message, help, path=(BUDGET, key), severity="warning")]
    return []


def _measured(params: Params, inputs: Inputs, found: Choices) -> list[Diagnostic]:
    """Return a complaint about matrices that the measurement does not have."""
    if SENSITIVITY not in params:
        return []
    sites = frozenset((inputs.others[SENSITIVITY].measured or {})["sites"])
    unknown = [module for entry in found.entries for module in entry.modules if module not in sites]
    if not unknown:
        return []
    few = f"`{unknown[0]}`" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
    help = "measure the checkpoint that this step takes, with `ignore: [lm_head]` alone"
    return [Diagnostic("R856", f"`{params[SENSITIVITY]}` did not measure {few}", help, path=(SENSITIVITY,))]


def scales(measured: Sensitivity) -> dict[str, float]:
    """Return module → loss of the model for a relative error of 1 of its output: the geometric mean over candidates."""
    found: dict[str, float] = {}
    for group in measured.groups:
        ratios = []
        for name, loss in group.losses.items():
            error = math.fsum(site.errors[name] for site in group.sites.values())
            if loss > 0 and error > 0:
                ratios.append(math.log(loss / error))
        scale = math.exp(math.fsum(ratios) / len(ratios)) if ratios else 0.0
        found |= dict.fromkeys(group.sites, scale)
    return found


def assign(
    params: Params, found: Choices, errors: Mapping[str, Sequence[Sequence[float]]], measured: Sensitivity | None
) -> Assignment:
    """Return the assignment of least loss. `errors` is tensor → option → source → relative error of its outputs.

    StepFailed where nothing meets the budget.
    """
    cost_of = scales(measured) if measured is not None else {}
    losses = [
        [
            math.fsum(error * cost_of.get(module, 1.0) for error, module in zip(each, entry.modules, strict=True))
            for each in errors[entry.name]
        ]
        for entry in found.entries
    ]
    picked = knapsack.choose(losses, found.costs, found.limit(params[BUDGET]))
    if picked is None:
        raise StepFailed("no assignment of types meets the budget", "raise it, or give smaller candidates")
    spent = sum(row[option] for row, option in zip(found.costs, picked, strict=True))
    return Assignment(
        {entry.name: types[o] for entry, types, o in zip(found.entries, found.options, picked, strict=True)},
        math.fsum(row[option] for row, option in zip(losses, picked, strict=True)),
        measured.unit if measured is not None else "relative error of outputs",
        8 * spent / found.weights,
    )


def planned_types(params: Params, facts: CheckpointFacts, tied: bool) -> Mapping[str, str]:
    """Return the largest option of each tensor, which a plan counts with."""
    if not is_auto(params):
        return {}
    found = choices(params, entries(facts, params, tied=tied)[0])
    return {entry.name: types[-1] for entry, types in zip(found.entries, found.options, strict=True)}

"""Complaints about modules that cannot be stored as asked; those alike in all layers share a line. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runner.contracts.sites import Site
from runner.errors import Diagnostic
from runner.model.checkpoint.quantization import group_sizes
from runner.model.checkpoint.quantization.format import Matrix, Refusal
from runner.model.checkpoint.quantization.scheme import Scheme


def complaints(refused: Iterable[tuple[Site, Refusal]]) -> list[Diagnostic]:
    """Return a complaint for each remedy, with a line for each problem."""
    grouped: dict[str, list[tuple[Site, str]]] = {}
    for site, why in refused:
        grouped.setdefault(why.remedy, []).append((site, why.problem))
    found = []
    for remedy, problems in grouped.items():
        noun = "1 module" if len(problems) == 1 else f"{len(problems)} modules"
        message = f"{noun} cannot be stored as asked; {remedy}:{lines(problems)}"
        found.append(Diagnostic("R411", message, remedy, path=("group_size",)))
    return found


def uneven_groups(schemes: Iterable[tuple[Site, Scheme]]) -> list[Diagnostic]:
    """Return complaints about sites whose columns the groups of their scheme do not divide."""
    refusals = ((site, group_sizes.refuse_uneven(scheme, Matrix(site.rows, site.columns))) for site, scheme in schemes)
    return complaints((site, why) for site, why in refusals if why is not None)


def lines(problems: Iterable[tuple[Site, str]]) -> str:
    """Return an indented line for each site and its problem, one for the sites of several layers that are alike."""
    alike: dict[tuple[str, str], list[str]] = {}
    for site, problem in problems:
        alike.setdefault((site.name.replace(f".{site.layer}.", ".*.", 1), problem), []).append(site.name)
    return "".join(f"\n    {_line(pattern, problem, names)}" for (pattern, problem), names in alike.items())


def _line(pattern: str, problem: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"`{names[0]}` {problem}"
    return f"`{pattern}` {problem} ({len(names)} layers)"

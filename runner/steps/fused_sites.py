"""Modules that servers multiply as one matrix, which must be stored alike. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.contracts.sites import Site
from runner.errors import Diagnostic
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.format import Stored
from runner.model.checkpoint.quantization.scheme import Scheme

_LAST = ("v", "up", "expert_up")  # the end of a fused matrix: its last block of rows may be short


def refuse_split(params: Mapping[str, Any], stored: Mapping[str, Stored], sites: tuple[Site, ...]) -> list[Diagnostic]:
    """Return complaints about fused modules with different schemes, or of which some are left out."""
    schemes = {name: own.scheme for name, own in stored.items()}
    server = next((r for r in formats.readers(stored.values()) if r.fuses and not r.limit), None)
    if server is None:
        return []
    split: dict[str, list[str]] = {}  # what is wrong with the modules of a layer, without its number → full names
    short: dict[str, list[str]] = {}
    for site in sites:
        if not site.fused_with:
            continue
        fused = sorted({site.name, *site.fused_with})
        found = [schemes.get(name) for name in fused]
        if site.name == fused[0] and len(set(found)) > 1:
            _note(split, site, _ways(fused, found))
        own_scheme = schemes.get(site.name)
        if own_scheme is not None and len(set(found)) == 1 and site.role not in _LAST:
            height = own_scheme.weights.layout[0] if isinstance(own_scheme.weights.layout, tuple) else 1
            if site.rows % height:
                _note(short, site, f"`{_last(site.name)}` has {site.rows} rows, which blocks of {height} do not divide")
    where = ("overrides",) if params.get("overrides") else ("ignore",)
    complaints = []
    if split:
        message = f"{server.name} multiplies modules as one that are to be stored in different ways:{_lines(split)}"
        complaints.append(Diagnostic("R423", message, "give them one scheme, or `ignore` all of them", path=where))
    if short:
        message = f"{server.name} cannot join modules whose blocks would reach into the next one:{_lines(short)}"
        complaints.append(Diagnostic("R423", message, "use `scheme: fp8`", path=("scheme",)))
    return complaints


def _ways(names: Sequence[str], schemes: Sequence[Scheme | None]) -> str:
    """ "`k_proj`, `v_proj` as 4-bit, symmetric, groups of 128 but `q_proj` as it is"."""
    ways: dict[str, list[str]] = {}
    for name, stored in zip(names, schemes, strict=True):
        ways.setdefault("as it is" if stored is None else f"as {stored.describe()}", []).append(f"`{_last(name)}`")
    return " but ".join(f"{', '.join(alike)} {how}" for how, alike in ways.items())


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _note(found: dict[str, list[str]], site: Site, problem: str) -> None:
    block = site.name.rpartition(".")[0]
    alike = f"{block}.".replace(f".{site.layer}.", ".*.", 1)[:-1]
    found.setdefault(f"`{alike}`: {problem}", []).append(f"`{block}`: {problem}")


def _lines(found: Mapping[str, list[str]]) -> str:
    """Return a line for each problem; one that several layers share gives their number."""
    return "".join(
        f"\n    {names[0] if len(names) == 1 else f'{alike} ({len(names)} layers)'}" for alike, names in found.items()
    )

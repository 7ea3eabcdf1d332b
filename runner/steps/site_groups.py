"""Groups of sites that get the same: those that servers fuse and store alike, and experts. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from runner.contracts.sites import Site


def groups(sites: Iterable[Site], *, fused: bool = True) -> tuple[tuple[Site, ...], ...]:
    """Return the groups in the order of the sites: q, k and v; gate and up; all experts of a mixture; else one alone.

    A group has those of its sites that are among `sites`. Without `fused`, all but experts are alone.
    """
    found: dict[tuple[str, ...], list[Site]] = {}
    for site in sites:
        found.setdefault(_key(site, fused), []).append(site)
    return tuple(tuple(group) for group in found.values())


def _key(site: Site, fused: bool) -> tuple[str, ...]:
    if site.is_expert:
        return (f"{site.layer}", site.expert.rpartition(".")[0])  # the mixture, without the number of the expert
    return tuple(sorted({site.name, *(site.fused_with if fused else ())}))


def label(names: Sequence[str]) -> str:
    """Return a group as people write it: `model.layers.0.self_attn.{q,k,v}_proj`, `model.layers.0.mlp.experts`."""
    if len(names) == 1:
        return names[0]
    blocks = {name.rpartition(".")[0] for name in names}
    if len(blocks) > 1:
        return _common(sorted(names)).rstrip(".")
    lasts = [name.rpartition(".")[2] for name in names]
    tails = {last.partition("_")[2] for last in lasts}
    heads = [last.partition("_")[0] for last in lasts]
    (block,) = blocks
    if len(tails) == 1 and "" not in tails:
        return f"{block}.{{{','.join(heads)}}}_{tails.pop()}"
    return f"{block}.{{{','.join(lasts)}}}"


def _common(names: Sequence[str]) -> str:
    first, last = names[0].split("."), names[-1].split(".")
    pairs = zip(first, last, strict=False)
    return ".".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

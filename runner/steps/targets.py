"""The modules that a step changes and how it stores them, from its params and the headers. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.sites import Site
from runner.model.checkpoint.quantization.format import Stored
from runner.model.checkpoint.quantization.presets import resolve
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.steps.patterns import module_params

Params = Mapping[str, Any]


def chosen(params: Params, facts: CheckpointFacts) -> dict[Site, dict[str, Any]]:
    """Return the linears that a step changes, each with its params."""
    own = ((linear, module_params(params, linear.name)) for linear in facts.sites)
    return {linear: p for linear, p in own if p is not None}


def changes(params: Params, facts: CheckpointFacts) -> set[str]:
    """Return the names of the weights that a step changes."""
    return {site.tensor for site in chosen(params, facts)}


def scheme(params: Params) -> Scheme | None:
    """Return how a step with these params stores a weight; None for one that leaves weights dense.

    Raises ValueError with a phrase about the params that contradict one another.
    """
    if "bits" not in params or "format" not in params:
        return None
    return resolve(
        params.get("scheme"), int(params["bits"]), params["group_size"], bool(params["symmetric"]),
        static=params.get("activations") == "static",
    )  # fmt: skip


def stored_scheme(params: Params) -> Scheme:
    """Return `scheme` for a step that stores weights quantized."""
    found = scheme(params)
    if found is None:
        raise ValueError("the step keeps weights dense")
    return found


def planned(params: Params, facts: CheckpointFacts) -> dict[str, Stored]:
    """Return module → how it is stored, for every module that will be packed."""
    found = {linear.name: (own, scheme(own)) for linear, own in chosen(params, facts).items()}
    return {name: Stored(str(own["format"]), how.stored) for name, (own, how) in found.items() if how is not None}


def ways(params: Params) -> set[Scheme]:
    """Return every scheme that the params ask for, by themselves and by each of `overrides`.

    Those that contradict themselves, which `check` refuses, are left out.
    """
    found = set()
    for own in (params, *({**params, **changes} for changes in params.get("overrides", {}).values())):
        try:
            stored = scheme(own)
        except ValueError:
            continue
        if stored is not None:
            found.add(stored)
    return found

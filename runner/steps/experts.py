"""Mixtures of experts as steps see them: what they refuse of them, and what is counted. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.metric_ranges import AMOUNT
from runner.contracts.sites import Site
from runner.errors import Diagnostic
from runner.model.checkpoint import adapter_config, formats
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.steps.targets import scheme
from runner.wording import first

# METRICS of a kind that changes experts by what their tokens say.
EXPERTS = {"experts": AMOUNT, "experts_below_floor": AMOUNT, "expert_tokens_min": AMOUNT}
LEAVE = 'leave them as they are: `ignore: [lm_head, "*.experts.*"]`'


def refuse(
    params: Mapping[str, Any], own: Mapping[Site, Mapping[str, Any]], facts: CheckpointFacts
) -> list[Diagnostic]:
    """Return complaints about experts that cannot be changed as asked."""
    experts = [site for site in own if site.is_expert]
    if not experts:
        return []
    found = []
    if not params.get("true_sequential", True):
        message = "the experts of a mixture are calibrated one matrix after another; `true_sequential: false` is not"
        found.append(Diagnostic("R603", message, "leave it out", path=("true_sequential",)))
    packed = {site.name for site in experts if scheme(own[site]) is not None}
    for mixture in facts.linears.mixtures:
        if mixture.unpackable and not packed.isdisjoint(_names(mixture.matrices, mixture.experts)):
            message = f"the experts `{mixture.name}` cannot be stored packed: {mixture.unpackable}"
            found.append(Diagnostic("R602", message, f"{LEAVE}, or prune them", path=("ignore",)))
            break
    return found + _split(packed, facts)


def refuse_adapters(linears: Iterable[Site], kind: str, remedy: str) -> list[Diagnostic]:
    """Return a complaint about experts among modules for which `kind` is to make an adapter."""
    experts = [site.name for site in linears if site.is_expert]
    if not experts:
        return []
    message = f"{first(experts)} of a mixture would get an adapter; `{kind}` makes none of experts"
    return [Diagnostic("R605", message, remedy, path=("ignore",))]


def refuse_renamed(linears: Iterable[Site], facts: CheckpointFacts, key: str, remedy: str) -> list[Diagnostic]:
    """Return a complaint about modules of a mixture whose adapter, kept beside the weights, peft would not load.

    `key` chooses the modules.
    """
    names = [site.name for site in linears if not site.is_expert]
    found = adapter_config.renamed(facts.config.model_type, names) if facts.linears.mixtures else []
    if not found:
        return []
    message = (
        f"peft would not load a kept adapter of {first(found)}: in a `{facts.config.model_type}` it takes such "
        "names for others"
    )
    return [Diagnostic("R611", message, remedy, path=(key,))]


def refuse_requantizing(facts: CheckpointFacts, key: str) -> list[Diagnostic]:
    """Return a complaint about a mixture that is to be quantized again with an adapter merged into it."""
    if not facts.linears.mixtures:
        return []
    message = "a mixture of experts cannot be quantized again with an adapter merged into it"
    return [Diagnostic("R606", message, f"use `{key}: keep`", path=(key,))]


def refuse_rounded_inputs(facts: CheckpointFacts, measures: bool) -> Diagnostic | None:
    """Return a complaint about packed experts whose inputs servers round in a way that a step does not compute.

    Steps that measure round them, where one rule holds for all experts of a layer and needs no calibrated scale.
    """
    packing = formats.parse(facts.quantization)
    if packing is None:
        return None
    found: dict[int, tuple[str, Scheme]] = {}
    for site in facts.sites:
        packed = site.is_expert and formats.of_module(facts.tensors, site.name) is not None
        own = packing.scheme(site.name) if packed else None
        if own is None:
            continue
        first, other = found.setdefault(site.layer, (site.name, own))
        if own.activations is not None and (own.calibrated or not measures):
            message = f"servers round the inputs of the expert `{site.name}` ({own.describe()}), and this step does not"
            return Diagnostic("R607", message, "measure it on a server, or as it was before it was quantized")
        if own.activations != other.activations:
            message = f"servers round the inputs of the experts `{first}` and `{site.name}` in different ways"
            return Diagnostic("R607", message, "measure it on a server, or as it was before it was quantized")
    return None


def _names(matrices: Sequence[Any], experts: int) -> list[str]:
    return [each.name.format(expert) for each in matrices for expert in range(experts)]


def _split(packed: set[str], facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a complaint about a tensor of several experts of which only some are to be packed."""
    held: dict[str, list[str]] = {}
    for site in facts.sites:
        if site.index is not None:
            held.setdefault(site.tensor, []).append(site.name)
    for tensor, names in held.items():
        left = [name for name in names if name not in packed]
        if left and len(left) < len(names):
            message = f"`{tensor}` holds all experts of a layer, and `{left[0]}` is not to be packed with the others"
            return [Diagnostic("R604", message, "leave out all of them, or none", path=("ignore",))]
    return []

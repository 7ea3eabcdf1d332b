"""Adapters of the experts of a mixture (peft's `target_parameters`), as a plan sees them. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from runner.contracts.facts import CheckpointFacts
from runner.contracts.mixtures import ExpertParameter, Mixture
from runner.contracts.sites import Site
from runner.contracts.step_kind import Params
from runner.errors import Diagnostic
from runner.wording import first, ticked

OTHERS = 'name the others alone, such as `target_modules: ["*.self_attn.*"]`'


def parameters(sites: Collection[Site], mixtures: Iterable[Mixture]) -> list[ExpertParameter]:
    """Return the parameters of experts that hold any of these sites."""
    names = {site.name for site in sites if site.is_expert}
    return [each for mixture in mixtures for each in mixture.parameters() if not names.isdisjoint(each.sites())]


def check(params: Params, facts: CheckpointFacts, chosen: Collection[Site]) -> list[Diagnostic]:
    """Return complaints about experts among the `chosen` sites that cannot get the adapter that is asked for."""
    experts = [site.name for site in chosen if site.is_expert]
    if not experts:
        return []
    what = f"{first(experts)} of a mixture would get an adapter"
    if facts.quantization:
        message = f"{what}; that is trained over weights in floating point, and this checkpoint is quantized"
        help = f"put the step before the quantization, or {OTHERS}"
        return [Diagnostic("R605", message, help, path=("target_modules",))]
    return _split(facts, set(experts)) + _untrainable(params, what)


def _split(facts: CheckpointFacts, experts: Collection[str]) -> list[Diagnostic]:
    """Return a complaint about a parameter of which only some experts or matrices are chosen."""
    for mixture in facts.linears.mixtures:
        for parameter in mixture.parameters():
            sites = parameter.sites()
            left = [name for name in sites if name not in experts]
            if left and len(left) < len(sites):
                message = (
                    f"`target_modules` names only some of the matrices that transformers holds in `{parameter.name}`, "
                    f"which peft adapts as a whole: `{left[0]}` is not among them"
                )
                patterns = ticked(sorted({each.name.format("*") for each in parameter.matrices}))
                return [Diagnostic("R609", message, f"name {patterns}, or none of them", path=("target_modules",))]
    return []


def _untrainable(params: Params, what: str) -> list[Diagnostic]:
    """Return complaints about settings that peft has for modules alone."""
    found = []
    if params["dropout"]:
        message = f"{what}; peft has no dropout for experts, whose adapter is added to their weights"
        found.append(Diagnostic("R610", message, f"set `dropout: 0`, or {OTHERS}", path=("dropout",)))
    if params["variant"] == "dora":
        message = f"{what}; peft has no DoRA for experts"
        found.append(Diagnostic("R610", message, f"use `variant: lora` or `rslora`, or {OTHERS}", path=("variant",)))
    return found

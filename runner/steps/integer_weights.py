"""The check of steps that take quantized weights only as integers. Imports no torch."""

from __future__ import annotations

from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.model.checkpoint import formats


def refuse_others(facts: CheckpointFacts, kind: str) -> list[Diagnostic]:
    """Return a complaint where the checkpoint stores floats, or rounds inputs too."""
    try:
        packing = formats.parse(facts.quantization)
    except ValueError:  # complained about elsewhere
        return []
    if packing is None:
        return []
    found = {scheme for site in facts.sites if (scheme := packing.scheme(site.name)) is not None}
    others = sorted(scheme.describe() for scheme in found if not scheme.is_integer)
    if not others:
        return []
    message = f"`{kind}` takes integer weights with inputs as they are; the checkpoint stores {others[0]}"
    return [Diagnostic("R421", message, "put the step before the quantization, or use `bits` instead of `scheme`")]

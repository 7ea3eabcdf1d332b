"""Steps that take quantized weights as integers alone. Imports no torch."""

from __future__ import annotations

from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.model.checkpoint import formats


def refuse_others(facts: CheckpointFacts, kind: str) -> list[Diagnostic]:
    """A complaint where weights of a checkpoint are floats, or inputs are rounded too."""
    try:
        packing = formats.parse(facts.quantization)
    except ValueError:  # another complaint names it
        return []
    if packing is None:
        return []
    found = {scheme for site in facts.sites if (scheme := packing.scheme(site.name)) is not None}
    others = sorted(scheme.describe() for scheme in found if not scheme.is_integer)
    if not others:
        return []
    message = f"`{kind}` takes integer weights with inputs as they are; the checkpoint stores {others[0]}"
    return [Diagnostic("R421", message, "put the step before the quantization, or use `bits` instead of `scheme`")]

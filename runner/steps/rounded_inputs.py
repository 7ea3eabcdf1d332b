"""Modules whose inputs readers round in different ways. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.model.checkpoint.quantization.format import Stored


def warn_flat(packed: Mapping[str, Stored], facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a warning about modules whose inputs transformers rounds with one scale for all tokens of a batch.

    compressed-tensors 0.20 takes the first two dimensions of an input for those of windows and tokens, and some models
    give [tokens, columns]. vLLM, as evaluations here, has a scale for each token.
    """
    flat = {each.stored for each in facts.linears.modules if each.flat}
    wrong: dict[str, list[str]] = {}
    for site in facts.sites:
        own = packed.get(site.name)
        inputs = None if own is None else own.scheme.activations
        if site.name in flat and inputs is not None and inputs.layout == "token":
            wrong.setdefault(site.name.replace(f".{site.layer}.", ".*.", 1), []).append(site.name)
    if not wrong:
        return []
    message = (
        "transformers will round the inputs of some modules with one scale for all tokens of a batch, vLLM and "
        "evaluations here with one for each token, since the model joins the windows of a batch:"
    )
    for alike, names in wrong.items():
        message += f"\n    `{names[0]}`" if len(names) == 1 else f"\n    `{alike}` ({len(names)} layers)"
    help = "serve the result with vLLM, or `ignore` these modules"
    return [Diagnostic("R613", message, help, path=("scheme",), severity="warning")]

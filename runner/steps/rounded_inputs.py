"""Modules whose inputs readers round in different ways. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.format import Stored


def warn(packed: Mapping[str, Stored], facts: CheckpointFacts) -> list[Diagnostic]:
    """Return warnings about packed modules whose inputs transformers does not round as vLLM does."""
    return _warn_mixture(packed, facts) or _warn_flat(packed, facts)


def _warn_mixture(packed: Mapping[str, Stored], facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a warning about a mixture of whose experts transformers does not round the inputs.

    It unpacks such checkpoints as it loads them; 8-bit floats of `fp8` on machines without a GPU that has them.
    """
    first = next((s.name for s in facts.sites if s.is_expert and s.name in packed), None)
    if first is None or packed[first].scheme.activations is None:
        return []
    where = " on machines whose GPU has no 8-bit floats" if packed[first].format == formats.FP8 else ""
    message = (
        f"transformers will not round the inputs of experts such as `{first}`, nor those of other modules{where}: it "
        "unpacks the weights of this mixture as it loads them. vLLM and evaluations here round them"
    )
    help = "serve the result with vLLM, or choose a scheme of weights alone, such as `w4a16`"
    return [Diagnostic("R657", message, help, path=("scheme",), severity="warning")]


def _warn_flat(packed: Mapping[str, Stored], facts: CheckpointFacts) -> list[Diagnostic]:
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

"""The kinds of steps that work on an architecture, by transformers' description of it. Imports no torch."""

from __future__ import annotations

from runner import wording
from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic

_MEASURES = frozenset({"evaluate.perplexity", "evaluate.divergence"})
# These go through the decoder layers one after another, whatever the layers are.
_LAYERWISE = _MEASURES | {"quantize.rtn", "quantize.gptq", "prune.magnitude", "prune.wanda"}
_STATE_SPACE = (".A_log", ".time_decay", ".recurrent_param")


def refuse(kind: str, facts: CheckpointFacts) -> Diagnostic | None:
    """Return a complaint where a kind is known not to work on the architecture of a checkpoint, else None."""
    description, source = facts.description, f"`{facts.source}` (`{facts.config.model_type}`)"
    if description is None:
        return None
    if description.experts and kind not in _MEASURES:
        holds = f"it holds `{description.experts}`"
        message = f"{source} is a mixture of experts: {holds}; mixtures cannot be compressed yet"
        return Diagnostic("R441", message, "choose a dense model")
    state = next((name for name in sorted(facts.tensors) if name.endswith(_STATE_SPACE)), None)
    if state is None or kind in _MEASURES:
        return None
    layers = f"{source} has state-space layers: it holds `{state}`"
    if kind not in _LAYERWISE:
        message = f"{layers}; they have not been tried with `{kind}`"
        return Diagnostic("R447", message, f"kinds that work are {wording.ticked(sorted(_LAYERWISE))}")
    if any(each.called is None for each in description.linears.modules):
        message = f"{layers}; which linear modules its forward calls depends on values, so no plan can tell"
        return Diagnostic("R447", message, "choose a model whose decoder layers are attention and feed-forward blocks")
    return None

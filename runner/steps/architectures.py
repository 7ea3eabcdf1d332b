"""The kinds of steps that work on an architecture, by transformers' description of it. Imports no torch."""

from __future__ import annotations

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_description import ModelDescription
from runner.contracts.step_kind import Inputs
from runner.errors import Diagnostic
from runner.model.architecture import supported
from runner.model.checkpoint.quantization import cache_scheme
from runner.steps import experts
from runner.wording import ticked

_MEASURES = frozenset({"evaluate.perplexity", "evaluate.divergence"})
# They round keys and values as the checkpoint says; `quantize.kv` refuses them itself.
_CACHES = _MEASURES | {"evaluate.tasks", "evaluate.latency", "evaluate.parity", "quantize.kv"}
# These go through the decoder layers one after another, whatever the layers are.
_LAYERWISE = _MEASURES | {
    "analyze.sensitivity",
    "quantize.rtn",
    "quantize.gptq",
    "prune.magnitude",
    "prune.wanda",
    "prune.experts",
}
# Layers are left out with their experts.
_MIXTURES = _LAYERWISE | {"prune.depth", "prune.sparsegpt", "recover.eora", "recover.lora"}
# They see the inputs of linear modules, whatever the model computed those of.
_IMAGES = frozenset({"quantize.gptq", "quantize.rtn", "prune.wanda"})
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_STATE_SPACE = (".A_log", ".time_decay", ".recurrent_param")


def refuse_cache(kind: str, facts: CheckpointFacts) -> Diagnostic | None:
    """Return a complaint where a kind would drop how the cache of a checkpoint is rounded, else None."""
    if kind in _CACHES or not (facts.quantization or {}).get(cache_scheme.KEY):
        return None
    message = f"`{kind}` takes no checkpoint with scales for its cache of keys and values"
    return Diagnostic("R652", message, "put `quantize.kv` after it")


def refuse_images(kind: str, inputs: Inputs) -> Diagnostic | None:
    """Return a complaint where a kind, or the model, does not take the images of a data entry, else None."""
    parameter, data = next(((name, each) for name, each in inputs.data.items() if each.has_images), ("", None))
    if data is None:
        return None
    facts = inputs.checkpoint
    if kind not in _IMAGES:
        message = f"`{kind}` reads text alone; the data entry `{data.name}` has images"
        return Diagnostic("R665", message, f"kinds that read images are {ticked(sorted(_IMAGES))}", path=(parameter,))
    if not supported.has_towers(facts.config.raw):
        message = f"the data entry `{data.name}` has images; `{facts.source}` (`{facts.config.model_type}`) reads text"
        return Diagnostic("R666", message, "leave `images` out, or choose a model that sees images", path=(parameter,))
    folder = facts.tokenizer
    if folder is not None and not any((folder / name).is_file() for name in _PROCESSORS):
        message = f"the data entry `{data.name}` has images; `{facts.source}` has no processor for them"
        help = f"copy {ticked(_PROCESSORS, 'or')} from the original model"
        return Diagnostic("R666", f"{message}: its folder has no {ticked(_PROCESSORS, 'or')}", help, path=(parameter,))
    return None


def refuse(kind: str, facts: CheckpointFacts) -> Diagnostic | None:
    """Return a complaint where a kind is known not to work on the architecture of a checkpoint, else None."""
    description, source = facts.description, f"`{facts.source}` (`{facts.config.model_type}`)"
    if description is None:
        return None
    if supported.has_towers(facts.config.raw) and kind not in _LAYERWISE:
        message = f"{source} has towers for images or sound, with which `{kind}` has not been tried"
        return Diagnostic("R443", message, f"kinds that work are {ticked(sorted(_LAYERWISE))}")
    if description.hands_state and kind == "quantize.signround":
        message = f"{source} has layers that hand one another keys and values: they cannot be learned one at a time"
        return Diagnostic("R632", message, "use `quantize.gptq`")
    shared = _shared_weights(description)
    if shared is not None and not kind.startswith("evaluate."):
        message = f"{source} can be measured, not changed: its decoder layers share `{shared}`"
        return Diagnostic("R643", message, "choose a model whose layers have weights of their own")
    if description.experts and (unmeasured := experts.refuse_rounded_inputs(facts, kind in _MEASURES)):
        return unmeasured
    if description.experts and kind not in _MEASURES:
        refusal = _mixture(kind, description, source)
        if refusal is not None:
            return refusal
    sites = {site.tensor for site in facts.sites}
    built = next((name for name in description.built if kind not in _MIXTURES or name in sites), None)
    if built is not None and kind not in _MEASURES:
        holds = f"it holds `{built}`, which transformers makes other tensors of on loading"
        message = f"{source} can be measured, not changed: {holds}"
        return Diagnostic("R408", message, "choose a model that is stored as transformers runs it")
    state = next((name for name in sorted(facts.tensors) if name.endswith(_STATE_SPACE)), None)
    if state is None or kind in _MEASURES:
        return None
    layers = f"{source} has state-space layers: it holds `{state}`"
    if kind not in _LAYERWISE:
        message = f"{layers}; they have not been tried with `{kind}`"
        return Diagnostic("R447", message, f"kinds that work are {ticked(sorted(_LAYERWISE))}")
    if any(each.called is None for each in description.linears.modules):
        message = f"{layers}; which linear modules its forward calls depends on values, so no plan can tell"
        return Diagnostic("R447", message, "choose a model whose decoder layers are attention and feed-forward blocks")
    return None


def _shared_weights(description: ModelDescription) -> str | None:
    """Return a parameter of a decoder layer that another layer uses too, if there is one."""
    inside = f"{description.layers}."
    pairs = sorted((description.ties or {}).items()) if description.layers else []
    within = ((name, source) for name, source in pairs if name.startswith(inside) and source.startswith(inside))
    numbers = ((source, *(each.removeprefix(inside).partition(".")[0] for each in (name, source)))
               for name, source in within)  # fmt: skip
    return next((source for source, one, other in numbers if one != other), None)


def _mixture(kind: str, description: ModelDescription, source: str) -> Diagnostic | None:
    """Return a complaint where a kind cannot change a mixture of experts."""
    what = f"{source} is a mixture of experts: it holds `{description.experts}`"
    if kind not in _MIXTURES:
        message = f"{what}; `{kind}` cannot change mixtures yet"
        return Diagnostic("R441", message, f"kinds that can are {ticked(sorted(_MIXTURES))}")
    mixtures = description.linears.mixtures
    unfollowed = next((each.unfollowed for each in mixtures if each.unfollowed), "" if mixtures else _HIDDEN)
    if unfollowed:
        return Diagnostic("R601", f"{what}, which can be measured, not changed: {unfollowed}", "choose another model")
    return None


_HIDDEN = "they are in no module of a decoder layer that is known to hold experts"

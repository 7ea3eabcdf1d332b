"""A model with fewer experts: its config.json, the tensors that have a row for each expert, and its facts.

What a smaller mixture looks like is proposed by rule and then asked of transformers: the configuration is changed, the
tensors are cut, and a model is described of both. What it would not load, or could not run, is refused. No torch.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.contracts.facts import DTYPE_BYTES, CheckpointFacts, TensorHeader
from runner.contracts.mixtures import Mixture
from runner.contracts.model_config import ModelConfig
from runner.contracts.model_description import EMBEDDING, NORM, ModelDescription
from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import decoder_layers, model_complaints, probe, remote_code, supported
from runner.model.architecture.sites import multiplying

# The names that configurations of transformers have for the number of experts of a mixture.
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts", "n_experts")
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts")
_OTHER = "choose another model, or prune weights within its experts"


@dataclass(frozen=True)
class FewerExperts:
    """How a checkpoint with fewer experts is made of one with more.

    config   config.json of the result
    count    the experts that each mixture has, `keep` those that it will have
    rows     tensor with a row for each expert, on its first axis longer than 1 → the name of its mixture
    own      tensor of one expert → its mixture, the number of the expert, and its name with {} for that number
    """

    config: Mapping[str, Any]
    count: int
    keep: int
    rows: Mapping[str, str]
    own: Mapping[str, tuple[str, int, str]]

    def names(self, tensors: Mapping[str, Any], chosen: Mapping[str, Sequence[int]]) -> dict[str, str]:
        """Return stored name → new name of all that stays; `chosen` has the experts that stay, by mixture."""
        place = {name: {old: new for new, old in enumerate(kept)} for name, kept in chosen.items()}
        found = {}
        for name in tensors:
            if name not in self.own:
                found[name] = name
                continue
            mixture, expert, template = self.own[name]
            if expert in place[mixture]:
                found[name] = template.format(place[mixture][expert])
        return found


def active(facts: CheckpointFacts) -> int:
    """Return how many experts a token is routed to; 0 where neither the model nor its configuration says so."""
    told = [each.active for each in facts.linears.mixtures]
    named = [value for key in _ACTIVE if type(value := facts.config.text.get(key)) is int]
    return max([*told, *named], default=0)


def find(facts: CheckpointFacts, keep: int) -> FewerExperts:
    """Return how the mixtures of a described checkpoint are cut to `keep` experts each. RecipeError (R844, R845)."""
    mixtures = facts.linears.mixtures
    counts = sorted({each.experts for each in mixtures})
    source = f"`{facts.source}` (`{facts.config.model_type}`)"
    if len(counts) > 1:
        numbers = " and ".join(map(str, counts))
        raise _refused("R844", f"the mixtures of {source} have {numbers} experts, and one number is to be written")
    keys = [key for key in _COUNTS if facts.config.text.get(key) == counts[0]]
    if not keys:
        raise _refused("R844", f"config.json of {source} has no key that says that there are {counts[0]} experts")
    own = {name: found for each in mixtures for name, found in _of_experts(each, facts.tensors)}
    rows = {name: each.name for each in mixtures for name in _with_rows(each, facts) if name not in own}
    unread = () if facts.description is None else facts.description.ignored
    for name in unread:
        if "experts" in name.split("."):
            raise _refused("R845", f"{source} holds `{name}`, experts that transformers does not read")
    text = {**facts.config.text, **dict.fromkeys(keys, keep)}
    nested = facts.config.text is not facts.config.raw
    config = {**facts.config.raw, "text_config": text} if nested else text
    return FewerExperts(config, counts[0], keep, rows, own)


def _of_experts(mixture: Mixture, tensors: Mapping[str, TensorHeader]) -> Iterator[tuple[str, tuple[str, int, str]]]:
    """The tensors that each expert has for itself: those of its matrices, and what else lies in its modules."""
    starts = {each.name.partition("{}")[0] for each in mixture.matrices if each.tensor not in tensors}
    for name in tensors:
        for start in starts:
            number, _, rest = name.removeprefix(start).partition(".")
            if name.startswith(start) and number.isdigit():
                yield name, (mixture.name, int(number), f"{start}{{}}.{rest}" if rest else f"{start}{{}}")


def _with_rows(mixture: Mixture, facts: CheckpointFacts) -> Iterator[str]:
    """The tensors with a row for each expert: those that hold all experts, and of the modules around them the routers,

    their biases and whatever else has that many rows and is no site, norm or embedding.
    """
    yield from (name for name in mixture.tensors() if name in facts.tensors)
    sites = {site.tensor for site in facts.sites}
    around = f"{mixture.name.rpartition('.')[0]}."
    for each in () if facts.description is None else facts.description.parameters:
        stored = facts.tensors.get(each.stored or "")
        if stored is None or not each.name.startswith(around) or stored.name in sites:
            continue
        if stored.dtype.startswith(("I", "U")):
            message = f"`{stored.name}` holds whole numbers, which may be those of experts that are to be dropped"
            raise _refused("R845", message)
        if _rows(stored.shape) == mixture.experts and each.kind not in (NORM, EMBEDDING):
            yield stored.name


def _rows(shape: Sequence[int]) -> int:
    """The length of the first axis longer than 1."""
    return next((length for length in shape if length > 1), 1)


def beside_matrices(facts: CheckpointFacts) -> str:
    """Return what keeps experts from being added to one another, matrix by matrix; "" where nothing does."""
    of_experts = {site.tensor for site in facts.sites if site.is_expert}
    for mixture in facts.linears.mixtures:
        roles = [each.role for each in mixture.matrices]
        if "expert_gate_up" in roles:
            return f"`{mixture.name}` holds gate and up in one matrix, whose neurons have no order that is known"
        held = of_experts.union(mixture.tensors())
        for each in () if facts.description is None else facts.description.parameters:
            if each.name.startswith(f"{mixture.name}.") and each.stored is not None and each.stored not in held:
                return f"each has `{each.name}` beside its matrices"
        for name, _ in _of_experts(mixture, facts.tensors):
            if name not in held or facts.tensors[name].dtype not in ("F32", "F16", "BF16"):
                return f"`{name}` is no matrix of floating-point numbers"
    return ""


def facts_of(facts: CheckpointFacts, cut: FewerExperts) -> CheckpointFacts:
    """Return the facts of the result, as transformers describes it. RecipeError (R844) where it would not load it.

    Which experts stay is decided when the step runs; the result has the same names and shapes whichever they are.
    """
    kept = {each.name: range(cut.keep) for each in facts.linears.mixtures}
    tensors = {}
    for old, new in cut.names(facts.tensors, kept).items():
        header = facts.tensors[old]
        shape = header.shape
        if old in cut.rows:
            axis = shape.index(cut.count)
            shape = (*shape[:axis], cut.keep, *shape[axis + 1 :])
        tensors[new] = TensorHeader(
            new, header.dtype, shape, "the result", 0, DTYPE_BYTES[header.dtype] * math.prod(shape)
        )
    found = _described(facts, cut.config, tensors)
    wrong = model_complaints.complaints(found, tensors, cut.config, facts.source)
    if wrong:
        first = wrong[0].message
        message = f"transformers would not load `{facts.source}` (`{facts.config.model_type}`) with {cut.keep} experts"
        raise _refused("R844", f"{message}: {first}")
    made = decoder_layers.build(cut.config, tensors, facts.source, {}, facts.layers_prefix)
    sites = multiplying(made.sites, tensors, found)
    config = ModelConfig.of(cut.config)
    return replace(facts, config=config, tensors=tensors, sites=sites, description=found, unpacked={})


def _described(
    facts: CheckpointFacts, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> ModelDescription:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if supported.runs_own_code(facts.config.raw) and facts.tokenizer is not None:
            for path in facts.tokenizer.glob(remote_code.CODE):
                shutil.copyfile(path, folder / path.name)
        return probe.description(folder, tensors)


def _refused(code: str, message: str) -> RecipeError:
    return RecipeError([Diagnostic(code, message, _OTHER)])

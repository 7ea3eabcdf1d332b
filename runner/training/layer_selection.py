"""Select the decoder layers of a student, and describe a checkpoint of them. Imported by the planner: no torch.

Layers count from 0. The bytes are copied by `runner.training.layer_dropping.cut`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.model_description import ModelDescription, is_of_experts
from runner.errors import Diagnostic
from runner.model.architecture.sites import with_fused


def most_influential(count: int, influence: Sequence[float]) -> list[int]:
    """Return the `count` most influential layers in the model's order; of equals the earlier ones (ShortGPT)."""
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return sorted(ranked[:count])


def evenly(count: int, layers: int) -> list[int]:
    """Return `count` of `layers` layers, evenly spaced from the first to the last; a single one is the first."""
    if count == 1:
        return [0]
    return [round(i * (layers - 1) / (count - 1)) for i in range(count)]


def spread(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pair each student layer with the teacher layer at the same relative depth, the last with the last."""
    return [(layer, max(0, round((layer + 1) * teacher / student) - 1)) for layer in range(student)]


def renamed(facts: CheckpointFacts, keep: Sequence[int]) -> dict[str, str]:
    """Return the tensors of a checkpoint of the layers `keep`: stored name → new name."""
    names = {name: name for name in facts.tensors if not _numbered(facts, name)}
    for new, old in enumerate(keep):
        for name in facts.layer_tensors(old):
            names[name] = f"{facts.layers_prefix}{new}.{name.removeprefix(f'{facts.layers_prefix}{old}.')}"
    return names


def config(model: ModelConfig, keep: Sequence[int], derived: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the config.json of the layers `keep` of a model with the configuration `model`.

    Lists with an entry for each layer are reduced to those layers, numbers of layers counted anew. `derived` is the
    configuration as transformers reads it: what it derives from a layer's number (mostly `layer_types`) is written out,
    because the numbers change.
    """
    source, layers = model.raw, model.layer_count
    if not layers:
        raise ValueError("config.json does not say how many decoder layers the model has")
    cut = {**source, model.layer_count_key: len(keep)}
    for name, value in {**(derived or {}), **{n: v for n, v in source.items() if v is not None}}.items():
        if _per_layer(name, value, layers):
            cut[name] = [value[layer] for layer in keep]
    for name in _FIRST:
        if isinstance(source.get(name), int):
            cut[name] = sum(layer < source[name] for layer in keep)
    for name in _NUMBERS:
        if isinstance(source.get(name), list):
            cut[name] = [new for new, old in enumerate(keep) if old in source[name]]
    if isinstance(source.get("num_kv_shared_layers"), int):  # Gemma 3n: the last ones, which share keys and values
        first = layers - source["num_kv_shared_layers"]
        cut["num_kv_shared_layers"] = sum(layer >= first for layer in keep)
    if _int(source, _SPARSE) > 1:  # Qwen's mixtures: each such layer has experts, but for `mlp_only_layers`
        dense = [layer for layer in range(layers) if (layer + 1) % source[_SPARSE] or layer in source.get(_DENSE, ())]
        cut |= {_SPARSE: 1, _DENSE: [new for new, old in enumerate(keep) if old in dense]}
    if "attention_types" in source and "attention_layers" in cut:  # GPT-Neo: [[[type, …], repeats], …]
        cut["attention_types"] = [[cut["attention_layers"], 1]]
    return cut


_FIRST = (  # that many layers from the first one on are of another kind
    "max_window_layers", "first_k_dense_replace", "num_dense_layers", "num_hash_layers",
)  # fmt: skip
_NUMBERS = ("mlp_only_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers", "moe_layers")
_SPARSE, _DENSE = "decoder_sparse_step", "mlp_only_layers"
# What a layer is follows from its number by a rule that no other model of fewer layers can have: key → when.
_RULES: Mapping[str, str] = {
    "scale_attn_by_inverse_layer_idx": "scales attention by the number of a layer",
    "n_layers_per_attn_res_block": "adds residuals after every few layers",
    "hybrid_override_pattern": "has the kind of each layer in one text",
}
_INTERVALS = ("moe_layer_interval", "moe_layer_freq", "interleave_moe_layer_step", "expert_layer_period",
              "attn_layer_period")  # fmt: skip
_NUMBERED = {"diffllama": "weighs the attention of a layer by its number"}


def refuse(source: CheckpointFacts) -> Diagnostic | None:
    """Return a complaint where config.json cannot describe fewer layers of a model, else None."""
    raw, what = source.config.raw, f"layers of `{source.source}` (`{source.config.model_type}`) cannot be left out: "
    why = _NUMBERED.get(source.config.model_type) or next((why for key, why in _RULES.items() if raw.get(key)), None)
    every = next((key for key in _INTERVALS if _int(raw, key) > 1), None)
    if every is not None:
        why = f"makes one of every {raw[every]} layers another (`{every}`)"
    if why is not None:
        return Diagnostic("R806", f"{what}the model {why}", OTHERS)
    if not source.config.layer_count:
        return Diagnostic("R806", f"{what}config.json does not say how many it has", OTHERS)
    return None


OTHERS = "leave the step out, or use `prune.width`"


def uneven(source: CheckpointFacts) -> tuple[int, int] | None:
    """Return two layers that hold different tensors, or None where all are alike."""
    shapes = [
        {
            name.removeprefix(f"{source.layers_prefix}{layer}."): (
                source.tensors[name].dtype,
                source.tensors[name].shape,
            )
            for name in source.layer_tensors(layer)
        }
        for layer in range(source.layer_count)
    ]
    other = next((layer for layer, each in enumerate(shapes) if each != shapes[0]), None)
    return None if other is None else (0, other)


def _int(source: Mapping[str, Any], key: str) -> int:
    value = source.get(key)
    return value if isinstance(value, int) else 0


def facts(source: CheckpointFacts, keep: Sequence[int]) -> CheckpointFacts:
    """Return the facts of a checkpoint of the layers `keep`."""
    names = renamed(source, keep)
    move = _Move(source.layers_prefix, keep)
    sites = [
        replace(site, name=name, tensor=move(site.tensor) or site.tensor, layer=move.place[site.layer])
        for site in source.sites
        if (name := move(site.name)) is not None
    ]
    return replace(
        source,
        config=ModelConfig.of(config(source.config, keep)),
        tensors={new: replace(source.tensors[old], name=new) for old, new in names.items()},
        layer_count=len(keep),
        sites=with_fused(sorted(sites, key=lambda site: (site.layer, site.name))),
        description=None if source.description is None else _description(source, source.description, keep),
    )


class _Move:
    """Moves the names of what is in decoder layers, below `prefix`, to the new numbers of the layers `keep`."""

    def __init__(self, prefix: str, keep: Sequence[int]) -> None:
        self.prefix, self.place = prefix, {old: new for new, old in enumerate(keep)}

    def __call__(self, name: str | None) -> str | None:
        """Return the new name; None for one in a layer that is left out."""
        rest = (name or "").removeprefix(self.prefix)
        number, _, tail = rest.partition(".")
        if not self.prefix or name is None or rest == name or not number.isdigit():
            return name
        return f"{self.prefix}{self.place[int(number)]}.{tail}" if int(number) in self.place else None

    def all(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the new names of those that stay."""
        return tuple(new for name in names if (new := self(name)) is not None)

    def pairs(self, names: Mapping[str, str] | None) -> dict[str, str] | None:
        """Return the pairs of names of which both stay."""
        if names is None:
            return None
        found = ((self(one), self(other)) for one, other in names.items())
        return {one: other for one, other in found if one is not None and other is not None}


def _description(source: CheckpointFacts, found: ModelDescription, keep: Sequence[int]) -> ModelDescription:
    """Return the description of the model of the layers `keep`."""
    model, stored = _Move(f"{found.layers}." if found.layers else "", keep), _Move(source.layers_prefix, keep)
    parameters = tuple(
        replace(each, name=name, stored=stored(each.stored))
        for each in found.parameters
        if (name := model(each.name)) is not None
    )
    linears = replace(
        found.linears,
        modules=tuple(
            replace(each, name=name, stored=stored(each.stored))
            for each in found.linears.modules
            if (name := model(each.name)) is not None
        ),
        mixtures=tuple(
            replace(each, name=name, layer=model.place[each.layer], matrices=tuple(
                replace(matrix, name=stored(matrix.name) or matrix.name, tensor=stored(matrix.tensor) or matrix.tensor)
                for matrix in each.matrices
            ))
            for each in found.linears.mixtures
            if (name := model(each.name)) is not None
        ),
    )  # fmt: skip
    return replace(
        found,
        layer_count=len(keep),
        parameters=parameters,
        ties=model.pairs(found.ties),
        both_stored=model.pairs(found.both_stored),
        packed=stored.all(found.packed),
        ignored=stored.all(found.ignored),
        built=stored.all(found.built),
        linears=linears,
        caches=None if found.caches is None else tuple(
            replace(each, name=name, stored=stored(each.stored) or each.stored)
            for each in found.caches if (name := model(each.name)) is not None
        ),
        experts=next((each.name for each in parameters if found.experts and is_of_experts(each)), ""),
    )  # fmt: skip


def _numbered(facts: CheckpointFacts, name: str) -> bool:
    rest = name.removeprefix(facts.layers_prefix)
    return rest != name and rest.partition(".")[0].isdigit()


def _per_layer(name: str, value: object, layers: int) -> bool:
    """Return whether an entry of config.json is a list with an item for each layer."""
    other = name in ("architectures", "attention_types", *_NUMBERS) or name.endswith(("token_id", "token_ids"))
    return isinstance(value, list) and len(value) == layers and not other

"""Which decoder layers a student keeps, and what a checkpoint of these layers holds. Imported by the planner: no torch.

Layers count from 0. The bytes are copied by `runner.training.layer_dropping.cut`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_description import ModelDescription
from runner.model.architecture import supported
from runner.model.architecture.sites import with_fused
from runner.model.checkpoint.formats import weight_name


def most_influential(count: int, influence: Sequence[float]) -> list[int]:
    """The `count` layers of the most influence, in the model's order; of equals, the later ones go (ShortGPT)."""
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return sorted(ranked[:count])


def evenly(count: int, layers: int) -> list[int]:
    """`count` of `layers` layers, evenly spaced from the first to the last; one alone is the first."""
    if count == 1:
        return [0]
    return [round(i * (layers - 1) / (count - 1)) for i in range(count)]


def spread(student: int, teacher: int) -> list[tuple[int, int]]:
    """Each of `student` layers with the one of `teacher` layers at the same relative depth, the last with the last."""
    return [(layer, max(0, round((layer + 1) * teacher / student) - 1)) for layer in range(student)]


def renamed(facts: CheckpointFacts, keep: Sequence[int]) -> dict[str, str]:
    """Tensors of a checkpoint that stay when only the layers `keep` do: stored name → its name in the cut."""
    names = {name: name for name in facts.tensors if not _numbered(facts, name)}
    for new, old in enumerate(keep):
        for name in facts.layer_tensors(old):
            names[name] = f"{facts.layers_prefix}{new}.{name.removeprefix(f'{facts.layers_prefix}{old}.')}"
    return names


def config(source: Mapping[str, Any], keep: Sequence[int], derived: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json `source` for the layers `keep` of its model.

    A list with an entry for each layer keeps the entries of the layers that stay. `derived` is the configuration as
    transformers reads it: what it concludes from a layer's number (`layer_types` mostly) is written out, because the
    numbers change.
    """
    found = supported.layer_count(source)
    if found is None:
        raise ValueError("config.json does not say how many decoder layers the model has")
    key, layers = found
    cut = {**source, key: len(keep)}
    for name, value in {**(derived or {}), **{n: v for n, v in source.items() if v is not None}}.items():
        if _per_layer(name, value, layers):
            cut[name] = [value[layer] for layer in keep]
    if isinstance(source.get("max_window_layers"), int):  # Qwen2: the layers from this one on see a sliding window
        cut["max_window_layers"] = sum(layer < source["max_window_layers"] for layer in keep)
    if isinstance(source.get("num_kv_shared_layers"), int):  # Gemma 3n: the last ones, which share keys and values
        first = layers - source["num_kv_shared_layers"]
        cut["num_kv_shared_layers"] = sum(layer >= first for layer in keep)
    if "attention_types" in source and "attention_layers" in cut:  # GPT-Neo: [[[type, …], repeats], …]
        cut["attention_types"] = [[cut["attention_layers"], 1]]
    return cut


def facts(source: CheckpointFacts, keep: Sequence[int]) -> CheckpointFacts:
    """The facts of the cut checkpoint."""
    names = renamed(source, keep)
    tensors = {new: replace(source.tensors[old], name=new) for old, new in names.items()}
    place = {old: new for new, old in enumerate(keep)}
    sites = []
    for site in source.sites:
        if site.layer in place:
            name = names[weight_name(source.tensors, site.name)].rpartition(".")[0]
            sites.append(replace(site, name=name, tensor=f"{name}.weight", layer=place[site.layer]))
    return replace(
        source,
        config=config(source.config, keep),
        tensors=tensors,
        layer_count=len(keep),
        sites=with_fused(sorted(sites, key=lambda site: (site.layer, site.name))),
        description=_description(source, len(keep)),
    )


def _description(source: CheckpointFacts, layers: int) -> ModelDescription | None:
    """What stays true of the description of a model that is cut: what it ties and leaves unread outside its layers."""
    found = source.description
    if found is None:
        return None
    outside = tuple(name for name in found.ignored if not _numbered(source, name))
    return replace(found, layer_count=layers, parameters=(), packed=(), ignored=outside)


def _numbered(facts: CheckpointFacts, name: str) -> bool:
    rest = name.removeprefix(facts.layers_prefix)
    return rest != name and rest.partition(".")[0].isdigit()


def _per_layer(name: str, value: object, layers: int) -> bool:
    """Whether an entry of config.json lists something for each layer; a model of one layer has other short lists."""
    other = name in ("architectures", "attention_types") or name.endswith(("token_id", "token_ids"))
    return isinstance(value, list) and len(value) == layers and not other

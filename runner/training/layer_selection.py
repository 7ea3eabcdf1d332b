"""Select the decoder layers of a student, and describe a checkpoint of them. Imported by the planner: no torch.

Layers count from 0. The bytes are copied by `runner.training.layer_dropping.cut`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.model_description import ModelDescription
from runner.model.architecture.sites import with_fused
from runner.model.checkpoint.formats import weight_name


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

    Lists with an entry for each layer are reduced to those layers. `derived` is the configuration as transformers reads
    it: what it derives from a layer's number (mostly `layer_types`) is written out, because the numbers change.
    """
    source, layers = model.raw, model.layer_count
    if not layers:
        raise ValueError("config.json does not say how many decoder layers the model has")
    cut = {**source, model.layer_count_key: len(keep)}
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
    """Return the facts of a checkpoint of the layers `keep`."""
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
        config=ModelConfig.of(config(source.config, keep)),
        tensors=tensors,
        layer_count=len(keep),
        sites=with_fused(sorted(sites, key=lambda site: (site.layer, site.name))),
        description=_description(source, len(keep)),
    )


def _description(source: CheckpointFacts, layers: int) -> ModelDescription | None:
    """Return the description of the reduced model: its tied and ignored tensors outside the layers."""
    found = source.description
    if found is None:
        return None
    outside = tuple(name for name in found.ignored if not _numbered(source, name))
    return replace(found, layer_count=layers, parameters=(), packed=(), ignored=outside)


def _numbered(facts: CheckpointFacts, name: str) -> bool:
    rest = name.removeprefix(facts.layers_prefix)
    return rest != name and rest.partition(".")[0].isdigit()


def _per_layer(name: str, value: object, layers: int) -> bool:
    """Return whether an entry of config.json is a list with an item for each layer."""
    other = name in ("architectures", "attention_types") or name.endswith(("token_id", "token_ids"))
    return isinstance(value, list) and len(value) == layers and not other

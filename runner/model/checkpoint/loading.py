"""How a server loads a checkpoint or an engine, by its facts and the table of runner.model.checkpoint.servers."""

from __future__ import annotations

from runner.contracts.facts import CheckpointFacts
from runner.model.checkpoint import adapter_loading, formats, servers
from runner.model.checkpoint.quantization.scheme import Scheme


def verdict(server: str, facts: CheckpointFacts, device: float | None) -> servers.Verdict:
    """Return how `server` loads what `facts` describe on a device: the worst over its formats, schemes and adapter."""
    packing = None if facts.engine is not None else formats.parse(facts.quantization)
    cache = packing.cache if packing is not None else None
    model = _plain_type(facts)
    found = [
        servers.verdict(server, format, schemes, device, cache, model) for format, schemes in _stored(facts).items()
    ]
    unpacked = (
        servers.held_unpacked(server, facts.config.model_type, format, modules)
        for format, modules in _packed(facts, packing is not None).items()
    )
    found.extend(each for each in unpacked if each is not None)
    if facts.engine is None and facts.adapter is not None:  # an engine holds that of its checkpoint
        found.append(adapter_loading.verdict(server, facts.adapter))
    return max(found, key=lambda each: servers.HOW.index(each.how))


def _plain_type(facts: CheckpointFacts) -> str:
    """Return the type of a model; "" where transformers' reader of GGUF takes it for another one of this type.

    It leaves out biases of Llama and what changes rotary frequencies.
    """
    config = facts.config
    rope = config.rotary
    scaled = str(rope.get("rope_type") or rope.get("type") or "default") != "default"
    partly = config.model_type == "phi3" and (rope.get("partial_rotary_factor") or 1.0) != 1.0
    biased = config.model_type == "llama" and any(name.endswith("_proj.bias") for name in facts.tensors)
    return "" if scaled or partly or biased else config.model_type


def _stored(facts: CheckpointFacts) -> dict[str, set[Scheme]]:
    """Return the formats of a checkpoint or engine, with the schemes of the weights in each."""
    if facts.engine is not None:
        return {str(facts.engine["format"]): set()}
    packing = formats.parse(facts.quantization)
    found: dict[str, set[Scheme]] = {}
    for site in facts.sites if packing is not None else ():
        format = formats.of_module(facts.tensors, site.name)
        scheme = packing.scheme(site.name) if packing is not None else None
        if format is not None and scheme is not None:
            found.setdefault(format.NAME, set()).add(scheme)
    return found or {servers.DENSE: set()}


def _packed(facts: CheckpointFacts, quantized: bool) -> dict[str, list[str]]:
    """Return the packed modules of each format of a checkpoint."""
    found: dict[str, list[str]] = {}
    for site in facts.sites if quantized else ():
        format = formats.of_module(facts.tensors, site.name)
        if format is not None:
            found.setdefault(format.NAME, []).append(site.name)
    return found

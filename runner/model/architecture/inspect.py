"""Read a local checkpoint into CheckpointFacts: config.json, the headers of its shards, its adapter."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.errors import RecipeError
from runner.model.architecture import decoder_layers, supported
from runner.model.architecture.sites import with_fused
from runner.model.architecture.supported import runs_own_code
from runner.model.checkpoint.adapter_config import adapter_config
from runner.model.checkpoint.headers import read_config, read_headers, refuse_adapter_of_another


def facts(
    folder: Path, source: str, sites: Collection[str] | None = None, prefix: str | None = None
) -> CheckpointFacts:
    """A local checkpoint by its headers; RecipeError where it cannot be read.

    `sites` are the names of its sites where the planner has found them out (`Artifact.sites`). Without it every matrix
    of the decoder layers counts as one. `prefix` is that of the decoder layers where it is known.
    """
    config = read_config(folder)
    refusal = supported.refuse_config(config, f"`{source}`")
    if refusal:
        raise RecipeError([refusal])
    tensors = read_headers(folder)
    refuse_adapter_of_another(folder)
    shapes = {
        name.removesuffix(".weight_shape"): _read_shape(folder, header)
        for name, header in tensors.items()
        if name.endswith(".weight_shape")
    }
    if sites and prefix is None:
        prefix = decoder_layers.prefix_of(sites)
    found = decoder_layers.build(config, tensors, source, shapes, prefix)
    if sites is not None:
        names = frozenset(sites)
        found = replace(found, sites=with_fused(site for site in found.sites if site.name in names))
    return replace(found, adapter=adapter_config(folder))


def with_layers(facts: CheckpointFacts, prefix: str) -> CheckpointFacts:
    """The facts with the decoder layers of another prefix, of a checkpoint whose weights are not packed."""
    found = decoder_layers.build(facts.config.raw, facts.tensors, facts.source, {}, prefix)
    return replace(found, adapter=facts.adapter, engine=facts.engine, tokenizer=facts.tokenizer)


def _read_shape(folder: Path, header: TensorHeader) -> tuple[int, ...]:
    with (folder / header.shard).open("rb") as file:
        file.seek(header.begin)
        return struct.unpack(f"<{header.nbytes // 8}q", file.read(header.nbytes // 8 * 8))


def needs_own_code(folder: Path) -> bool:
    """The value of transformers' `trust_remote_code` for the checkpoint in a folder."""
    return runs_own_code(read_config(folder))

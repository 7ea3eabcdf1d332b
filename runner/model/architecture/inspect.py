"""Read a local checkpoint into CheckpointFacts: config.json, the headers of its shards, its adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.contracts.context import Artifact
from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.mixtures import Mixture
from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import decoder_layers, supported
from runner.model.architecture.sites import of_mixtures, with_fused
from runner.model.architecture.supported import runs_own_code
from runner.model.checkpoint import unpacking
from runner.model.checkpoint.adapter_config import adapter_config
from runner.model.checkpoint.companions import COMPRESSION, compressed_by
from runner.model.checkpoint.headers import read_config, read_headers, refuse_adapter_of_another
from runner.model.checkpoint.quantization import packed_names


def of_artifact(artifact: Artifact) -> CheckpointFacts:
    """The facts of an input of a step, with the sites that the planner has found out."""
    mixtures = artifact.linears.mixtures if artifact.linears is not None else ()
    return facts(artifact.path, str(artifact.path), artifact.sites, mixtures=mixtures)


def facts(
    folder: Path,
    source: str,
    sites: Collection[str] | None = None,
    prefix: str | None = None,
    mixtures: Iterable[Mixture] = (),
) -> CheckpointFacts:
    """A local checkpoint by its headers; RecipeError where it cannot be read.

    `sites` are the names of its sites where the planner has found them out (`Artifact.sites`), `mixtures` its mixtures
    of experts. Without the former every matrix of the decoder layers counts as one. `prefix` is that of the decoder
    layers where it is known.
    """
    config = read_config(folder)
    refusal = supported.refuse_config(config, f"`{source}`")
    if refusal:
        raise RecipeError([refusal])
    tensors = read_headers(folder)
    refuse_adapter_of_another(folder)
    # What this project wrote in a layout of others (it has a record of that) is read as any of its formats.
    if not (folder / COMPRESSION).is_file() and unpacking.find(config, unpacking.ONLY_READ) is not None:
        dense = unpacked(config, tensors, source, unpacking.peek_in(folder, tensors))
        return replace(dense, adapter=adapter_config(folder))
    shapes = {
        module: packed_names.read_shape(name, _read(folder, header))
        for name, header in tensors.items()
        if (module := packed_names.whose_shape(name)) is not None
    }
    if sites and prefix is None:
        prefix = decoder_layers.prefix_of(sites)
    found = decoder_layers.build(config, tensors, source, shapes, prefix)
    if sites is not None:
        names = frozenset(sites)
        experts = {site.name: site for site in of_mixtures(mixtures, tensors)}
        each = {site.name: site for site in found.sites} | experts
        named = sorted((site for name, site in each.items() if name in names), key=lambda site: (site.layer, site.name))
        found = replace(found, sites=with_fused(named))
    return replace(found, adapter=adapter_config(folder), compressed_by=compressed_by(folder))


def unpacked(
    config: Mapping[str, Any], tensors: Mapping[str, TensorHeader], source: str, peek: unpacking.Peek
) -> CheckpointFacts:
    """Return the facts of the dense checkpoint that low-precision weights stand for. RecipeError (R642)."""
    unpacker = unpacking.find(config)
    if unpacker is None:
        raise ValueError(f"{source} is not stored in low precision")
    try:
        if config.get("model_type") in supported.CONV1D_TYPES:
            raise unpacking.Unreadable(f"stores Conv1D modules as {unpacker.NAME}, whose order of axes is not known")
        dense = unpacking.dense(unpacker, config, tensors, peek)
    except unpacking.Unreadable as error:
        raise RecipeError([Diagnostic("R642", f"`{source}` {error}", _DAMAGED)]) from None
    found = decoder_layers.build(dense.config, dense.tensors, source, {})
    return replace(found, unpacked={weight.name: unpacker.NAME for weight in dense.weights})


_DAMAGED = "download the checkpoint again, or start from the model as it was before it was quantized"


def with_layers(facts: CheckpointFacts, prefix: str) -> CheckpointFacts:
    """The facts with the decoder layers of another prefix, of a checkpoint whose weights are not packed."""
    found = decoder_layers.build(facts.config.raw, facts.tensors, facts.source, {}, prefix)
    return replace(
        found, adapter=facts.adapter, engine=facts.engine, tokenizer=facts.tokenizer, unpacked=facts.unpacked
    )


def _read(folder: Path, header: TensorHeader) -> bytes:
    with (folder / header.shard).open("rb") as file:
        file.seek(header.begin)
        return file.read(header.nbytes)


def needs_own_code(folder: Path) -> bool:
    """The value of transformers' `trust_remote_code` for the checkpoint in a folder."""
    return runs_own_code(read_config(folder))

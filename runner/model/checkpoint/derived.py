"""Writes a checkpoint that is derived from another one: changed parts are new, everything else keeps its bytes.

Every step that makes a checkpoint ends here. Its changes to the tensors are one of

    Parts      parts of a CheckpointWriter, laid out in new shards
    Patches    new values in the files of the source, whose layout stays
    Selection  some tensors of the source, or rows of them, with their bytes, under other names
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner.contracts.account import CHANGED, COPIED, DROPPED, Account, TensorFate
from runner.contracts.facts import TensorHeader
from runner.errors import StepFailed
from runner.model.checkpoint import adapter_writer, formats
from runner.model.checkpoint.companions import COMPRESSION, copy_companions, write_json
from runner.model.checkpoint.headers import INDEX, read_config, read_headers
from runner.model.checkpoint.reader import DTYPES, CheckpointReader, require_finite
from runner.model.checkpoint.safetensors_writer import copy_range, raw_bytes, write_all, written
from runner.model.checkpoint.writer import CheckpointWriter, Pieces, copy_shards

if TYPE_CHECKING:
    import torch


class Tensors(Protocol):
    """The tensors of a derived checkpoint."""

    def write(self, source: CheckpointReader, out: Path) -> None:
        """Write the files of tensors; repeating it with the same arguments changes nothing."""
        ...

    def fate(self, name: str) -> TensorFate | None:
        """Return the fate of a tensor of the source; None where it is copied under its own name."""
        ...

    def copied(self, name: str) -> bool:
        """Whether the bytes that are written for a tensor of the source were copied from there."""
        ...


@dataclass(frozen=True)
class Parts:
    """Tensors in the parts of a `writer`.

    changed   a tensor of the source → those of the result that hold it now
    """

    writer: CheckpointWriter
    max_shard_bytes: int
    changed: Mapping[str, Collection[str]]

    def write(self, source: CheckpointReader, out: Path) -> None:
        self.writer.finish(out, self.max_shard_bytes)

    def fate(self, name: str) -> TensorFate | None:
        return TensorFate(CHANGED, tuple(sorted(self.changed[name]))) if name in self.changed else None

    def copied(self, name: str) -> bool:
        return name in self._copies

    @cached_property
    def _copies(self) -> frozenset[str]:
        return self.writer.copied()


Change = Callable[[], "torch.Tensor"]


@dataclass(frozen=True)
class Patches:
    """New values, by the names of tensors of the source; the files of the source keep their layout and size.

    A value has the shape of the old one and is rounded once to its type. One changed tensor is in memory at a time.
    """

    changes: Mapping[str, Change] = field(default_factory=dict)

    def write(self, source: CheckpointReader, out: Path) -> None:
        shards: dict[str, list[TensorHeader]] = {}
        for header in source.headers.values():
            shards.setdefault(header.shard, []).append(header)
        for shard, headers in sorted(shards.items()):
            file = source.file(shard)
            with written(out / shard) as target:
                copy_range(file, 0, os.fstat(file).st_size, target, shard)
                for header in headers:
                    if header.name in self.changes:
                        os.lseek(target, header.begin, os.SEEK_SET)
                        _put(target, header, self.changes[header.name]())
        if (source.folder / INDEX).is_file():
            shutil.copyfile(source.folder / INDEX, out / INDEX)

    def fate(self, name: str) -> TensorFate | None:
        return TensorFate(CHANGED, (name,)) if name in self.changes else None

    def copied(self, name: str) -> bool:
        return name not in self.changes


def _put(target: int, header: TensorHeader, value: torch.Tensor) -> None:

    tensor = value.to(DTYPES[header.dtype])
    if tuple(tensor.shape) != header.shape:
        raise ValueError(f"`{header.name}` is {list(header.shape)}, its new value {list(tensor.shape)}")
    require_finite(tensor, header.name, "the trained weights")
    write_all(target, raw_bytes(tensor))


@dataclass(frozen=True)
class Selection:
    """Tensors of the source under other names: `names` has old → new; `reason` explains why the others are dropped.

    They are laid out in shards of up to `max_shard_bytes`; None for one file.

    rows     of an old tensor, the places of its first axis longer than 1 that are written, in that order
    reasons  why single tensors are dropped, where it is not `reason`
    changes  of an old tensor, the values that are written in place of its bytes
    """

    names: Mapping[str, str]
    reason: str
    max_shard_bytes: int | None = None
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Pieces] = field(default_factory=dict)

    def write(self, source: CheckpointReader, out: Path) -> None:
        copy_shards(out, source, self.names, self.max_shard_bytes, self.rows, self.changes)

    def fate(self, name: str) -> TensorFate | None:
        if name in self.names:
            copied = self.copied(name)
            return TensorFate(COPIED if copied else CHANGED, (self.names[name],))
        return TensorFate(DROPPED, (), self.reasons.get(name, self.reason))

    def copied(self, name: str) -> bool:
        return name in self.names and name not in self.rows and name not in self.changes


@dataclass(frozen=True)
class Adapter:
    """An adapter to store with the weights: its adapter_config.json, and tensors by module and kind."""

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Derived:
    """The parts of a checkpoint that differ from its source.

    config   config.json; None where it is the source's
    files    further JSON files by name, such as those about the quantization
    added    tensors of the result that come from none of the source, each with the reason
    card     renders the model card of the folder once everything else is written; None for no card
    """

    tensors: Tensors
    config: Mapping[str, Any] | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    adapter: Adapter | None = None
    added: Mapping[str, str] = field(default_factory=dict)
    card: Callable[[Path], str] | None = None


def write(source: CheckpointReader, derived: Derived, out: Path) -> Account:
    """Write a derived checkpoint to `out`, and return the account of every tensor of `source`.

    Existing files are overwritten; after an interruption, calling it again repairs the folder. Raises StepFailed where
    a new value is not finite, or a tensor of the source or of the result cannot be accounted for.
    """
    out.mkdir(parents=True, exist_ok=True)
    derived.tensors.write(source, out)
    copy_companions(source.folder, out)
    before = read_config(source.folder)
    config = before if derived.config is None else derived.config
    if before.get("quantization_config") and config.get("quantization_config"):
        for name in (*(file for format in formats.all_formats() for file in format.FILES), COMPRESSION):
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, out / name)
    for name, value in sorted(derived.files.items()):
        write_json(out / name, dict(value))
    if config == before:
        shutil.copyfile(source.folder / "config.json", out / "config.json")
    else:
        write_json(out / "config.json", dict(config))
    if derived.adapter is not None:
        adapter_writer.write(out, derived.adapter.config, derived.adapter.tensors)
    if derived.card is not None:
        (out / "README.md").write_text(derived.card(out), encoding="utf-8")
    return account(source.headers, read_headers(out), derived.tensors, derived.added)


def account(
    before: Mapping[str, TensorHeader],
    after: Mapping[str, TensorHeader],
    tensors: Tensors,
    added: Mapping[str, str] | None = None,
) -> Account:
    """Return the account of every tensor in `before`, checked against the headers of the result."""
    fates = {name: tensors.fate(name) or TensorFate(COPIED, (name,)) for name in sorted(before)}
    wrong = [f"`{name}` {why}" for name, fate in fates.items() if (why := _contradiction(before[name], fate, after))]
    rewritten = (name for name, fate in fates.items() if fate.fate == COPIED and not tensors.copied(name))
    wrong = wrong or [f"`{name}` was to be copied, but was written from other values" for name in rewritten]
    explained = {*(new for fate in fates.values() for new in fate.names), *(added or {})}
    wrong += [f"`{name}` comes from no tensor of the checkpoint" for name in sorted(set(after) - explained)]
    if wrong:
        lines = "".join(f"\n    {line}" for line in wrong)
        raise StepFailed(f"the tensors of the written checkpoint are not those that were to be written:{lines}")
    return Account(fates, dict(added or {}))


def _contradiction(header: TensorHeader, fate: TensorFate, after: Mapping[str, TensorHeader]) -> str | None:
    missing = [name for name in fate.names if name not in after]
    if missing:
        return f"was {fate.fate}, but `{missing[0]}` is missing"
    as_before = (header.dtype, header.shape)
    if fate.fate == COPIED and any((after[name].dtype, after[name].shape) != as_before for name in fate.names):
        return "was copied, but has another type or shape"
    return None

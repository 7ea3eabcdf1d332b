"""Writes a checkpoint in parts that survive a crash, and assembles the parts at the end.

A layer-wise step writes one part per layer while it runs: a safetensors file that exists only once it is complete.
`finish` lays the tensors of all parts out in shards as Hugging Face names them, by copying bytes: memory stays
constant, equal parts give equal bytes, and a crash at any point is repaired by calling it again. A part is removed once
every shard that uses it is complete, so that the disk holds the checkpoint once, plus one shard. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import StepFailed
from runner.model.checkpoint.safetensors_writer import (
    Entry,
    aligned,
    copy_range,
    header,
    raw_bytes,
    read_entries,
    write_all,
    written,
)

if TYPE_CHECKING:
    import torch

    from runner.contracts.facts import TensorHeader
    from runner.model.checkpoint.reader import CheckpointReader

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B\s*$", re.IGNORECASE)
_PLAN = "consolidation.json"
_INDEX = "model.safetensors.index.json"
_COPIES = ".copies.json"  # beside a part that `copy` wrote: the names of its tensors


def parse_size(text: str) -> int:
    """Return the bytes of "5GB" (10⁹, as transformers counts), "512MiB" (2²⁰), "800KB" or "123B".

    Raises ValueError with the allowed forms.
    """
    found = _SIZE.match(text)
    power = " KMGT".index(found.group(2).upper() or " ") if found else 0
    size = int(float(found.group(1)) * (1024 if found.group(3) else 1000) ** power) if found else 0
    if size < 1 or (found is not None and found.group(3) and not power):
        raise ValueError(f"`{text}` is no size; write a number and a unit, like 5GB, 800MB or 512MiB")
    return size


@dataclass(frozen=True)
class _Piece:
    """A tensor on its way into a shard: its bytes lie at `offset` of the part's file."""

    part: str
    offset: int
    entry: Entry


class CheckpointWriter:
    """The parts of one checkpoint, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, part: str) -> Path:
        return self.folder / f"{part}.safetensors"

    def has(self, part: str) -> bool:
        return self.path(part).exists()

    def add(self, part: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a part from tensors, replacing one of that name. Equal tensors give equal bytes, in any order."""

        from runner.model.checkpoint.reader import DTYPE_NAMES

        entries = aligned(
            Entry(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), tensor.nbytes)
            for name, tensor in sorted(tensors.items())
        )
        self._copies(part).unlink(missing_ok=True)
        with written(self.path(part)) as file:
            write_all(file, header(entries))
            for entry in entries:
                write_all(file, raw_bytes(tensors[entry.name]))

    def copy(self, part: str, reader: CheckpointReader, names: Iterable[str]) -> None:
        """Write a part from tensors of another checkpoint as they are, without loading them, and note that."""
        found = sorted(names)
        with written(self._copies(part)) as file:
            write_all(file, json.dumps(found).encode())
        copy_tensors(self.path(part), reader, {name: name for name in found})

    def copied(self) -> frozenset[str]:
        """The tensors that `copy` wrote, whose bytes are those of the other checkpoint."""
        files = sorted(self.folder.glob(f"*{_COPIES}"))
        return frozenset(name for file in files for name in json.loads(file.read_text(encoding="utf-8")))

    def _copies(self, part: str) -> Path:
        return self.folder / f"{part}{_COPIES}"

    def finish(self, out: Path, max_shard_bytes: int, order: Sequence[str] | None = None) -> tuple[str, ...]:
        """Put the parts together in `out`, in `order` (by name if None); return the names of the files, sorted.

        Call it again after a crash with the same arguments; once it is done, calling it again changes nothing.
        """
        plan_file = self.folder / _PLAN
        if plan_file.exists():
            shards = _decode(json.loads(plan_file.read_text(encoding="utf-8")))
        else:
            shards = self._plan(max_shard_bytes, order)
            with written(plan_file) as file:
                write_all(file, json.dumps(_encode(shards)).encode())
        out.mkdir(parents=True, exist_ok=True)
        last_use = {piece.part: name for name, pieces in shards.items() for piece in pieces}
        for name, pieces in shards.items():
            if not (out / name).exists():
                self._write_shard(out / name, pieces)
            for part, last in last_use.items():
                if last == name:
                    self.path(part).unlink(missing_ok=True)
        if len(shards) == 1:
            return tuple(shards)
        weights = {piece.entry.name: name for name, pieces in shards.items() for piece in pieces}
        total = sum(piece.entry.nbytes for pieces in shards.values() for piece in pieces)
        with written(out / _INDEX) as file:
            write_all(file, _index(weights, total))
        return tuple(sorted((*shards, _INDEX)))

    def _plan(self, max_shard_bytes: int, order: Sequence[str] | None) -> dict[str, list[_Piece]]:
        """Fill shards in order up to the limit; a tensor beyond the limit has a shard to itself."""
        filled: list[list[_Piece]] = [[]]
        size, seen = 0, set()
        for part in sorted(p.stem for p in self.folder.glob("*.safetensors")) if order is None else order:
            if not self.has(part):
                raise self._missing(part)
            for name, (entry, offset) in sorted(read_entries(self.path(part)).items()):
                if name in seen:
                    raise ValueError(f"tensor {name!r} is in two parts")
                seen.add(name)
                if filled[-1] and size + entry.nbytes > max_shard_bytes:
                    filled.append([])
                    size = 0
                filled[-1].append(_Piece(part, offset, entry))
                size += entry.nbytes
        return dict(zip(_shard_names(len(filled)), filled, strict=True))

    def _missing(self, part: str) -> StepFailed:
        return StepFailed(
            f"part `{part}` of the checkpoint is missing in {self.folder}",
            "remove that folder's parent, and the step starts again",
        )

    def _write_shard(self, path: Path, pieces: Sequence[_Piece]) -> None:
        by_name = {piece.entry.name: piece for piece in pieces}
        entries = aligned(piece.entry for piece in pieces)
        files: dict[str, int] = {}
        try:
            with written(path) as target:
                write_all(target, header(entries))
                for entry in entries:
                    piece = by_name[entry.name]
                    if piece.part not in files:
                        if not self.has(piece.part):
                            raise self._missing(piece.part)
                        files[piece.part] = os.open(self.path(piece.part), os.O_RDONLY)
                    copy_range(files[piece.part], piece.offset, entry.nbytes, target, f"part `{piece.part}`")
        finally:
            for file in files.values():
                os.close(file)


# The values of a tensor in row-major order and in the type that is written, piece by piece.
Pieces = Callable[[], "Iterable[torch.Tensor]"]


def copy_tensors(
    path: Path,
    reader: CheckpointReader,
    names: Mapping[str, str],
    rows: Mapping[str, Sequence[int]] | None = None,
    changes: Mapping[str, Pieces] | None = None,
) -> None:
    """Write a file of tensors of another checkpoint, byte for byte; `names` has old → new.

    Of an old tensor in `rows` only those places of its first axis longer than 1 are written, in that order. Those in
    `changes` get new values instead of their bytes, in the type of the old ones.
    """
    chosen, changed = rows or {}, changes or {}
    found = {new: reader.header(old) for old, new in names.items()}
    entries = aligned(_entry(h, name, chosen.get(h.name)) for name, h in sorted(found.items()))
    with written(path) as file:
        write_all(file, header(entries))
        for entry in entries:
            source = found[entry.name]
            what = f"{source.shard}, tensor `{source.name}`,"
            if source.name in changed:
                _write_pieces(file, entry, changed[source.name]())
                continue
            stride, places = source.nbytes, [0]
            if source.name in chosen:
                stride, places = source.nbytes // source.shape[_axis(source)], list(chosen[source.name])
            for place in places:
                copy_range(reader.file(source.shard), source.begin + place * stride, stride, file, what)


def _write_pieces(file: int, entry: Entry, pieces: Iterable[torch.Tensor]) -> None:
    """Write new values of a tensor where a file of tensors goes on."""
    count = 0
    for piece in pieces:
        data = raw_bytes(piece)
        write_all(file, data)
        count += len(data)
    if count != entry.nbytes:
        raise ValueError(f"`{entry.name}` takes {entry.nbytes} bytes, its new values {count}")


def _entry(source: TensorHeader, name: str, rows: Sequence[int] | None) -> Entry:
    """Return the entry by which a tensor, or only some `rows`, is written under a name."""
    if rows is None:
        return Entry(name, source.dtype, source.shape, source.nbytes)
    axis = _axis(source)
    shape = (*source.shape[:axis], len(rows), *source.shape[axis + 1 :])
    return Entry(name, source.dtype, shape, source.nbytes // source.shape[axis] * len(rows))


def _axis(source: TensorHeader) -> int:
    """Return the first axis longer than 1, whose places are ranges of bytes."""
    return next(axis for axis, length in enumerate(source.shape) if length > 1)


def copy_shards(
    out: Path,
    reader: CheckpointReader,
    names: Mapping[str, str],
    max_shard_bytes: int | None,
    rows: Mapping[str, Sequence[int]] | None = None,
    changes: Mapping[str, Pieces] | None = None,
) -> None:
    """Write tensors of another checkpoint to `out`, as `copy_tensors` does, in shards up to a size."""
    sizes = {old: _entry(reader.header(old), old, (rows or {}).get(old)).nbytes for old in names}
    filled: list[dict[str, str]] = [{}]
    size = 0
    for old, new in sorted(names.items(), key=lambda pair: pair[1]):
        own = sizes[old]
        if filled[-1] and max_shard_bytes is not None and size + own > max_shard_bytes:
            filled.append({})
            size = 0
        filled[-1][old] = new
        size += own
    shards = dict(zip(_shard_names(len(filled)), filled, strict=True))
    for shard, tensors in shards.items():
        copy_tensors(out / shard, reader, tensors, rows, changes)
    if len(shards) > 1:
        weights = {new: shard for shard, tensors in shards.items() for new in tensors.values()}
        with written(out / _INDEX) as file:
            write_all(file, _index(weights, sum(sizes.values())))


def _shard_names(count: int) -> list[str]:
    """Return the names of the files of a checkpoint in `count` shards, as transformers has them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _index(weights: Mapping[str, str], total: int) -> bytes:
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _encode(shards: Mapping[str, Sequence[_Piece]]) -> dict[str, Any]:
    return {
        name: [[p.part, p.offset, p.entry.name, p.entry.dtype, list(p.entry.shape), p.entry.nbytes] for p in pieces]
        for name, pieces in shards.items()
    }


def _decode(plan: Mapping[str, Any]) -> dict[str, list[_Piece]]:
    return {
        name: [
            _Piece(part, offset, Entry(tensor, dtype, tuple(shape), nbytes))
            for part, offset, tensor, dtype, shape, nbytes in rows
        ]
        for name, rows in plan.items()
    }

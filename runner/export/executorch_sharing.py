"""Store once what a program of ExecuTorch holds twice: as a constant of its own, and as a weight of XNNPACK.

A program is a flatbuffer and segments after it (schema/program.fbs, "ET12"): one of all constants, with the offset of
each, and one for each weight that a delegate looks up by its name. Both are ranges of the file, and nothing keeps them
from being the same one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_MAGIC = b"eh00"  # of the header after the flatbuffer's first eight bytes
_DATA_SIZE = 32  # where that header says how many bytes the segments have
_LARGE = 1 << 16  # bytes of a weight that is looked for


@dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer: `at` is its place in `data`."""

    data: memoryview
    at: int

    def field(self, index: int) -> int | None:
        """Return the place of a field; None where it has its default."""
        table = self.at - _signed(self.data, self.at)
        entry = 4 + 2 * index
        if entry >= struct.unpack_from("<H", self.data, table)[0]:
            return None
        offset: int = struct.unpack_from("<H", self.data, table + entry)[0]
        return self.at + offset if offset else None

    def number(self, index: int, form: str) -> int:
        place = self.field(index)
        return 0 if place is None else int(struct.unpack_from(form, self.data, place)[0])

    def table(self, index: int) -> _Table | None:
        place = self.field(index)
        return None if place is None else _Table(self.data, place + _unsigned(self.data, place))

    def tables(self, index: int) -> Iterator[_Table]:
        place = self.field(index)
        if place is not None:
            start = place + _unsigned(self.data, place)
            for each in range(_unsigned(self.data, start)):
                entry = start + 4 + 4 * each
                yield _Table(self.data, entry + _unsigned(self.data, entry))

    def numbers(self, index: int) -> tuple[int, ...]:
        """Return a vector of 64-bit numbers."""
        place = self.field(index)
        if place is None:
            return ()
        start = place + _unsigned(self.data, place)
        return struct.unpack_from(f"<{_unsigned(self.data, start)}Q", self.data, start + 4)


def _signed(data: memoryview, place: int) -> int:
    return int(struct.unpack_from("<i", data, place)[0])


def _unsigned(data: memoryview, place: int) -> int:
    return int(struct.unpack_from("<I", data, place)[0])


def shared(program: bytes) -> bytes:
    """Return the program with each large weight that is also a constant stored once; as it is where there is none.

    ValueError where the file has no header that says where its segments begin.
    """
    data = memoryview(program)
    if program[8:12] != _MAGIC or _unsigned(data, 12) < 32:
        raise ValueError("the program has no header that says where its segments begin")
    base = struct.unpack_from("<Q", data, 24)[0]
    root = _Table(data, _unsigned(data, 0))
    segments, constants = [_Segment.of(each) for each in root.tables(4)], root.table(5)
    if constants is None:
        return program
    holder = segments[constants.number(0, "<I")]
    content = data[base + holder.offset : base + holder.offset + holder.size]
    same: dict[int, int] = {}  # segment of a weight → its offset among the constants
    for index in sorted({named.number(1, "<I") for named in root.tables(7)}):
        segment = segments[index]
        weight = data[base + segment.offset : base + segment.offset + segment.size]
        if segment.size >= _LARGE and segment.place is not None:
            place = next((o for o in constants.numbers(1) if content[o : o + segment.size] == weight), None)
            same |= {} if place is None else {index: place}
    return _rewritten(program, base, segments, holder, same) if same else program


@dataclass(frozen=True)
class _Segment:
    """A range of the file after the flatbuffer. `place`: where that has its offset; None of a 0, which is left out."""

    offset: int
    size: int
    place: int | None

    @classmethod
    def of(cls, table: _Table) -> _Segment:
        return cls(table.number(0, "<Q"), table.number(1, "<Q"), table.field(0))


def _rewritten(
    program: bytes, base: int, segments: Sequence[_Segment], holder: _Segment, same: Mapping[int, int]
) -> bytes:
    """Leave out the segments `same`, whose bytes begin at these offsets in `holder`, and move those behind them."""
    starts = sorted(segment.offset for segment in segments)
    end = len(program) - base
    cuts = {}  # start of a range that is left out → its end; whole alignments, as segments begin at one
    for index in same:
        start = segments[index].offset
        cuts[start] = next((each for each in starts if each > start), end)

    def moved(offset: int) -> int:
        return offset - sum(stop - start for start, stop in cuts.items() if start < offset)

    head = bytearray(program[:base])
    for index, segment in enumerate(segments):
        if segment.place is not None:
            offset = holder.offset + same[index] if index in same else segment.offset
            struct.pack_into("<Q", head, segment.place, moved(offset))
    kept, before = [], 0
    for start, stop in sorted(cuts.items()):
        kept.append(program[base + before : base + start])
        before = stop
    kept.append(program[base + before :])
    size = struct.unpack_from("<Q", head, _DATA_SIZE)[0]
    struct.pack_into("<Q", head, _DATA_SIZE, size - sum(stop - start for start, stop in cuts.items()))
    return b"".join([bytes(head), *kept])

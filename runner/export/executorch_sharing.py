"""Store once what a program of ExecuTorch holds twice: as a constant of its own, and as a weight of XNNPACK.

A program is a flatbuffer and segments after it (schema/program.fbs, "ET12"): one of all constants, with the offset of
each, and one for each weight that a delegate looks up by its name. Both are ranges of the file, and nothing keeps them
from being the same one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flatbuffers.number_types import Uint32Flags, Uint64Flags
from flatbuffers.table import Table

_MAGIC = b"eh00"  # of the header after the flatbuffer's first eight bytes
_DATA_SIZE = 32  # where that header says how many bytes the segments have
_LARGE = 1 << 16  # bytes of a weight that is looked for
# Fields of schema/program.fbs, by their places in a table.
_SEGMENTS, _CONSTANTS, _NAMED = (4 + 2 * index for index in (4, 5, 7))  # of Program
_OFFSET, _SIZE = (4 + 2 * index for index in (0, 1))  # of DataSegment
_SEGMENT, _OFFSETS = (4 + 2 * index for index in (0, 1))  # of SubsegmentOffsets, the constants
_SEGMENT_OF_NAMED = 4 + 2  # of NamedData


def _tables(table: Table, field: int) -> Iterator[Table]:
    """Return the tables of a vector; of a field that is not there, none."""
    place = table.Offset(field)
    for index in range(table.VectorLen(place) if place else 0):
        yield Table(table.Bytes, table.Indirect(table.Vector(place) + 4 * index))


def shared(program: bytes) -> bytes:
    """Return the program with each large weight that is also a constant stored once; as it is where there is none.

    ValueError where the file has no header that says where its segments begin.
    """
    if program[8:12] != _MAGIC or struct.unpack_from("<I", program, 12)[0] < 32:
        raise ValueError("the program has no header that says where its segments begin")
    data = memoryview(program)
    base = struct.unpack_from("<Q", data, 24)[0]
    root = Table(data, struct.unpack_from("<I", data)[0])
    segments, field = [_Segment.of(each) for each in _tables(root, _SEGMENTS)], root.Offset(_CONSTANTS)
    if not field:
        return program
    constants = Table(data, root.Indirect(root.Pos + field))
    holder = segments[constants.GetSlot(_SEGMENT, 0, Uint32Flags)]
    content = data[base + holder.offset : base + holder.offset + holder.size]
    field = constants.Offset(_OFFSETS)
    offsets = constants.GetVectorAsNumpy(Uint64Flags, field).tolist() if field else []
    same: dict[int, int] = {}  # segment of a weight → its offset among the constants
    for index in sorted({named.GetSlot(_SEGMENT_OF_NAMED, 0, Uint32Flags) for named in _tables(root, _NAMED)}):
        segment = segments[index]
        weight = data[base + segment.offset : base + segment.offset + segment.size]
        if segment.size >= _LARGE and segment.place is not None:
            place = next((o for o in offsets if content[o : o + segment.size] == weight), None)
            same |= {} if place is None else {index: place}
    return _rewritten(program, base, segments, holder, same) if same else program


@dataclass(frozen=True)
class _Segment:
    """A range of the file after the flatbuffer. `place`: where that has its offset; None of a 0, which is left out."""

    offset: int
    size: int
    place: int | None

    @classmethod
    def of(cls, table: Table) -> _Segment:
        place = table.Offset(_OFFSET)
        offset, size = (int(table.GetSlot(field, 0, Uint64Flags)) for field in (_OFFSET, _SIZE))
        return cls(offset, size, table.Pos + place if place else None)


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

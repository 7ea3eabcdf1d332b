"""Programs of ExecuTorch whose weights are constants, too: files of its layout, made by the library flatbuffers."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from flatbuffers.builder import Builder
from flatbuffers.number_types import Uint64Flags
from flatbuffers.table import Table

from runner.export.executorch_sharing import shared

BASE, ALIGNMENT = 4096, 128
TABLE, OTHER, SMALL = (bytes([number]) * size for number, size in ((1, 70_000), (2, 80_000), (3, 100)))


def program(constants: Sequence[bytes], weights: Sequence[bytes]) -> bytes:
    """A file with a segment of constants and one for each weight, named by its place."""
    segments, places, offsets = [b"".join(constants), *weights], list[int](), [0]
    for data in constants[:-1]:
        offsets.append(offsets[-1] + len(data))
    content = b""
    for data in segments:
        places.append(len(content))
        content += data + bytes(-len(data) % ALIGNMENT)
    builder = Builder(0)
    ranges = _vector(builder, [_object(builder, at, len(data)) for at, data in zip(places, segments, strict=True)])
    builder.StartVector(8, len(offsets), 8)
    for each in reversed(offsets):
        builder.PrependUint64(each)
    held = builder.EndVector()
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(1, held, 0)
    constant = builder.EndObject()
    names = []
    for index in range(len(weights)):
        key = builder.CreateString(str(index))
        builder.StartObject(3)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUint32Slot(1, 1 + index, 0)
        names.append(builder.EndObject())
    named = _vector(builder, names)
    builder.StartObject(8)
    for slot, place in ((4, ranges), (5, constant), (7, named)):
        builder.PrependUOffsetTRelativeSlot(slot, place, 0)
    builder.Finish(builder.EndObject(), b"ET12")
    flat = bytes(builder.Output())
    header = b"eh00" + struct.pack("<IQQQ", 32, len(flat) + 32, BASE, len(content))
    moved = struct.pack("<I", struct.unpack_from("<I", flat)[0] + 32)
    return (moved + flat[4:8] + header + flat[8:]).ljust(BASE, b"\0") + content


def _object(builder: Builder, offset: int, size: int) -> int:
    builder.StartObject(2)
    builder.PrependUint64Slot(0, offset, 0)
    builder.PrependUint64Slot(1, size, 0)
    return int(builder.EndObject())


def _vector(builder: Builder, places: Sequence[int]) -> int:
    builder.StartVector(4, len(places), 4)
    for each in reversed(places):
        builder.PrependUOffsetTRelative(each)
    return int(builder.EndVector())


def read(file: bytes) -> tuple[list[bytes], int]:
    """Return the bytes of all segments, and how many the header says there are in all."""
    root = Table(bytearray(file), struct.unpack_from("<I", file)[0])
    vector = root.Vector(root.Offset(4 + 2 * 4))
    found = []
    for index in range(root.VectorLen(root.Offset(4 + 2 * 4))):
        each = Table(root.Bytes, root.Indirect(vector + 4 * index))
        at, size = (each.GetSlot(4 + 2 * slot, 0, Uint64Flags) for slot in (0, 1))
        found.append(file[BASE + at : BASE + at + size])
    return found, struct.unpack_from("<Q", file, 32)[0]


@pytest.mark.parametrize("weights", [[TABLE, OTHER], [OTHER, TABLE], [SMALL, TABLE, OTHER, TABLE]])
def test_a_weight_that_is_a_constant_is_stored_once(weights: list[bytes]) -> None:
    given = program([SMALL, TABLE, SMALL], weights)
    found = shared(given)
    segments, size = read(found)
    assert segments == read(given)[0]
    assert found.count(TABLE) == 1
    assert BASE + size == len(found)


def test_what_is_there_once_stays() -> None:
    given = program([SMALL, OTHER], [TABLE, SMALL])
    assert shared(given) is given


def test_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match="the program has no header that says where its segments begin"):
        shared(b"ET12" * 20)

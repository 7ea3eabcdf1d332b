"""Packed rows against a stream of bits built one at a time."""

from __future__ import annotations

import pytest
import torch

from runner.model.checkpoint.quantization.bit_packing import pack_rows, unpack_rows
from tests.model.checkpoint.formats.checkpoints import (
    naive_words,
)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [32, 40, 1, 97])
def test_rows_are_one_stream_of_bits(bits: int, columns: int) -> None:
    values = torch.randint(0, 2**bits, (3, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack_rows(values, bits)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [naive_words(row, bits) for row in values.tolist()]
    assert torch.equal(unpack_rows(packed, bits, columns), values)


def test_a_single_word_of_a_transposed_tensor() -> None:
    values = torch.arange(16, dtype=torch.uint8).view(1, 16) % 4
    packed = torch.empty_strided((1, 1), (1, 2), dtype=torch.int32).copy_(pack_rows(values, 2))
    assert packed.is_contiguous()
    assert torch.equal(unpack_rows(packed, 2, 16), values)

"""`awq` against compressed-tensors' converter of AutoAWQ checkpoints, and a naive packer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

from runner.model.checkpoint import formats
from runner.model.checkpoint.formats import awq, pack_quantized
from runner.model.checkpoint.quantization.format import Matrix
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from tests.model.checkpoint.formats.checkpoints import assert_read_back, random_weight
from tests.model.packed import make

SCHEME = integers(4, 32, False)


def test_its_tensors_are_those_that_compressed_tensors_converts() -> None:
    weight = random_weight(SCHEME, dtype=torch.float16)
    stored = awq.pack("m", weight, {})
    converted = AutoAWQConverter(group_size=32, ignore=[]).process(dict(stored))
    wanted = pack_quantized.pack("m", weight, {})
    assert sorted(converted) == sorted(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(converted[name], tensor), name
    back = awq.unpack("m", SCHEME, {}, stored.__getitem__)
    assert back.zero_point is not None
    assert weight.zero_point is not None
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.zero_point, weight.zero_point)
    assert torch.equal(back.dequantize(torch.float16), weight.dequantize(torch.float16))


def test_a_word_holds_eight_outputs_in_its_own_order() -> None:
    weight = random_weight(SCHEME, dtype=torch.float16)
    words = awq.pack("m", weight, {})["m.qweight"]
    for column, first in ((0, 0), (17, 8)):
        word = int(words[column, first // 8]) & 0xFFFFFFFF
        places = (0, 2, 4, 6, 1, 3, 5, 7)
        assert [(word >> (4 * i)) & 15 for i in range(8)] == [int(weight.codes[first + p, column]) for p in places]


def test_a_checkpoint_is_read_back(tmp_path: Path) -> None:
    dense = make(tmp_path / "packed", "awq", lambda module: SCHEME, dtype=torch.float16)
    assert_read_back(tmp_path / "packed", dense)


def test_its_configuration_is_read_back() -> None:
    config = awq.config({"m": SCHEME}, ["head", "m2"])
    assert config == {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["head", "lm_head", "m2"],
    }  # fmt: skip
    packing = formats.parse(config)
    assert packing is not None
    assert packing.scheme("m") == SCHEME
    with pytest.raises(ValueError, match=r"^the awq layout `gemv` of 4 bits cannot be read$"):
        formats.parse({**config, "version": "gemv"})


@pytest.mark.parametrize(
    ("scheme", "matrix", "problem", "remedy"),
    [
        (
            integers(4, 32, True), Matrix(64, 64),
            (
                "is to be stored as 4-bit, symmetric, groups of 32; `awq` holds 4-bit integers with zero points, in "
                "groups"
            ),
            (
                "use `bits: 4`, `symmetric: false` and a group size, or `format: gptq` or `format: pack-quantized`"
            ),
        ),
        (
            PRESETS["fp8"], Matrix(64, 64),
            f"is to be stored as {PRESETS['fp8'].describe()}; `awq` holds 4-bit integers with zero points, in groups",
            (
                "use `bits: 4`, `symmetric: false` and a group size, or `format: float-quantized` or "
                "`format: modelopt`"
            ),
        ),
        (
            SCHEME, Matrix(60, 64), "has 60 rows; `awq` packs them by 8",
            "add it to `ignore`, or `format: pack-quantized`",
        ),
    ],
)  # fmt: skip
def test_what_it_cannot_hold(scheme: Scheme, matrix: Matrix, problem: str, remedy: str) -> None:
    assert formats.refuse("awq", scheme, matrix) == (problem, remedy)


def test_one_scheme_for_all_modules() -> None:
    assert awq.refuse_together([SCHEME, SCHEME]) is None
    assert awq.refuse_together([SCHEME, integers(4, 64, False)]) == (
        "`awq` checkpoints have one scheme for all modules", "drop `overrides`, or use `format: pack-quantized`",
    )  # fmt: skip

"""What holds of every format: how they are found, read back, and refuse what they cannot hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runner.model.checkpoint import formats
from runner.model.checkpoint.formats import gptq, int_quantized, pack_quantized
from runner.model.checkpoint.quantization.format import Format, Matrix
from runner.model.checkpoint.quantization.presets import resolve
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from tests.model.checkpoint.formats.checkpoints import ALL, departures
from tests.model.packed import GPTQ, PACK_QUANTIZED


def test_config_does_not_depend_on_the_order_of_modules() -> None:
    schemes = {m: integers(4, 128, True) if i % 2 else integers(8, "channel", True) for i, m in enumerate(ALL[:8])}
    for format in (PACK_QUANTIZED, GPTQ):
        turned = dict(reversed(schemes.items()))
        assert formats.find(format).config(schemes, ALL[8:]) == formats.find(format).config(turned, ALL[8:])


@pytest.mark.parametrize("format", [PACK_QUANTIZED, GPTQ])
def test_configs_are_read_back(format: str) -> None:
    schemes = {m: integers(4, 128, True) if i % 3 else integers(8, "channel", False) for i, m in enumerate(ALL)}
    packing = formats.parse(formats.find(format).config(schemes))
    assert packing is not None
    assert {module: packing.scheme(module) for module in ALL} == schemes


def test_configs_that_cannot_be_read() -> None:
    assert formats.parse(None) is None
    for config, message in (
        ({"quant_method": "hqq"}, "checkpoints quantized with `hqq` cannot be read"),
        (
            {"quant_method": "compressed-tensors", "format": "mxfp6-pack-quantized", "config_groups": {"g": {}}},
            "the compressed-tensors format `mxfp6-pack-quantized` cannot be read",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{message}; a dense checkpoint is needed$"):
            formats.parse(config)


@pytest.mark.parametrize(
    ("format", "scheme", "shape", "problem", "remedy"),
    [
        (PACK_QUANTIZED, integers(4, 128, True), (96, 64),
         "has 96 columns, which group_size 128 does not divide",
         "use group_size 16 or 32"),
        (PACK_QUANTIZED, integers(4, 128, True), (1408, 64), None, None),
        (GPTQ, integers(4, 128, True), (100, 64), "has 100 columns, which group_size 128 does not divide",
         'use group_size: "channel"'),
        (GPTQ, integers(5, 32, True), (96, 64), "has 5 bits, which `gptq` cannot store",
         "use 2, 3, 4 or 8 bits, or `format: pack-quantized`"),
        (GPTQ, integers(4, 48, True), (96, 64), "has group_size 48, which readers of `gptq` refuse",
         'use group_size 16, 32, 64, 128, 256, 512, 1024 or "channel", or `format: pack-quantized`'),
        (GPTQ, integers(3, 32, True), (96, 16), "has 16 rows; `gptq` at 3 bits packs them by 32",
         "add it to `ignore`, or `format: pack-quantized`"),
        (GPTQ, integers(4, "channel", True), (100, 64), "has 100 columns; `gptq` at 4 bits packs them by 8",
         "add it to `ignore`, or `format: pack-quantized`"),
        (GPTQ, integers(4, 32, True), (96, 16), None, None),
        (GPTQ, integers(8, "channel", True), (98, 64), "has 98 columns; `gptq` at 8 bits packs them by 4",
         "add it to `ignore`, or `format: int-quantized` or `format: pack-quantized`"),
        (PACK_QUANTIZED, resolve("w4a8", 4, 32, False), (96, 64),
         ("is to be stored as 4-bit, asymmetric, groups of 32; inputs dynamically to 8-bit, symmetric, per token; with "
          "zero points, readers of `pack-quantized` do not round inputs"), "use `symmetric: true`"),
        (PACK_QUANTIZED, resolve("w4a8", 4, "tensor", False), (96, 64), None, None),
        ("int-quantized", integers(4, "channel", True), (96, 64),
         "is to be stored as 4-bit, symmetric, per channel; `int-quantized` holds 8-bit integers",
         "use 8 bits, or `format: gptq` or `format: pack-quantized`"),
        ("int-quantized", integers(8, 32, True), (96, 64),
         "has 8-bit, symmetric, groups of 32; `int-quantized` has no groups",
         'use group_size: "channel", or `format: gptq` or `format: pack-quantized`'),
    ],
)  # fmt: skip
def test_what_cannot_be_stored(
    format: str, scheme: Scheme, shape: tuple[int, int], problem: str | None, remedy: str | None
) -> None:
    assert formats.refuse(format, scheme, Matrix(shape[1], shape[0])) == (
        None if problem is None else (problem, remedy)
    )


def test_conv1d_modules_are_refused_where_readers_would_leave_them_random() -> None:
    assert formats.refuse(PACK_QUANTIZED, integers(4, 32, True), Matrix(64, 96, transposed=True)) == (
        "is a Conv1D module, which compressed-tensors cannot load",
        "use a kind that keeps weights dense, or `format: gptq`",
    )
    assert formats.refuse(GPTQ, integers(4, 32, True), Matrix(64, 96, transposed=True)) is None


def test_schemes_that_cannot_share_a_checkpoint() -> None:
    four, eight = integers(4, 128, True), integers(8, "channel", True)
    assert pack_quantized.refuse_together([four, eight, four]) is None
    assert pack_quantized.refuse_together([integers(4, 128, False)]) is None
    assert pack_quantized.refuse_together([four, integers(4, 128, False)]) == (
        "transformers cannot load asymmetric weights beside weights of another scheme",
        "use `symmetric: true` everywhere, or one scheme for all modules",
    )
    assert gptq.refuse_together([four, integers(4, 128, False)]) is None
    assert gptq.refuse_together([four, eight]) == (
        "transformers reads `gptq` checkpoints with one scheme for all modules",
        "use `format: pack-quantized`, drop `overrides`, or load the result with gptqmodel or vLLM",
    )


def test_what_vllm_serves() -> None:
    def served(format: str, scheme: Scheme) -> bool:
        (limit,) = (reader.limit for reader in formats.find(format).readers([scheme]) if reader.name == "vLLM")
        assert limit in ("", "vLLM has no kernels for this way of storing weights.")
        return not limit

    assert served(PACK_QUANTIZED, integers(4, 128, True))
    assert not served(PACK_QUANTIZED, integers(3, 128, True))
    assert not served(PACK_QUANTIZED, integers(8, "tensor", True))
    assert served(GPTQ, integers(4, 128, True))
    assert not served(GPTQ, integers(4, 128, False))
    assert not served(GPTQ, integers(3, 128, True))


def test_the_planner_needs_no_torch() -> None:
    modules = "runner.model.checkpoint.formats, runner.model.checkpoint.writer, runner.model.card"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_module_of_the_package_is_a_format() -> None:
    typed: list[Format] = [gptq, int_quantized, pack_quantized]  # for the type checker
    found = formats.all_formats()
    assert [format.NAME for format in typed] == [format.NAME for format in found if format in typed]
    assert {format.NAME: departures(format) for format in found} == {format.NAME: [] for format in found}


def test_the_schema_offers_every_format() -> None:
    core = json.loads((Path(__file__).parents[4] / "schemas" / "core.schema.json").read_text(encoding="utf-8"))
    assert sorted(core["$defs"]["quantized_format"]["enum"]) == sorted(f.NAME for f in formats.all_formats())


def test_an_unknown_format_is_named() -> None:
    names = ", ".join(f"`{format.NAME}`" for format in formats.all_formats())
    with pytest.raises(ValueError, match=f"^`exl3` is not one of the formats {names}$"):
        formats.find("exl3")

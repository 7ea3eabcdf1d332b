from __future__ import annotations

from dataclasses import replace

import pytest

from runner.contracts.facts import TensorHeader
from runner.contracts.model_description import LinearModule, Linears
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization import checkpoint_config
from runner.model.checkpoint.quantization.format import Stored
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.scheme import integers

PACKED, KEPT = "decoder.layers.0.fc1", "decoder.layers.0.cross.k_proj"
STORED = {PACKED: Stored("pack-quantized", integers(4, 8, True))}
TENSORS = {f"{name}.weight": TensorHeader(f"{name}.weight", "F32", (8, 8), "s", 0, 256) for name in (PACKED, KEPT)}
MODULES = (
    LinearModule(f"model.{PACKED}", PACKED, True),
    LinearModule(f"model.{KEPT}", KEPT, False),
    LinearModule("cls.decoder", None, True),
)
READS = "transformers' code of this model reads the weights of linear modules while it loads them; it can only load "


def test_everything_that_is_not_packed_is_named_as_the_model_and_as_the_checkpoint_name_it() -> None:
    config = checkpoint_config.write(STORED, TENSORS, Linears(MODULES))
    assert config["ignore"] == ["cls.decoder", KEPT, "lm_head", f"model.{KEPT}"]
    assert "dequantize" not in config


def test_a_model_that_needs_its_weights_is_unpacked_on_loading() -> None:
    linears = Linears(MODULES, needed=True)
    config = checkpoint_config.write(STORED, TENSORS, linears)
    assert config["dequantize"] is True
    assert checkpoint_config.refuse(STORED, linears) is None


@pytest.mark.parametrize(
    ("stored", "problem", "remedy"),
    [
        (
            {PACKED: Stored("gptq", integers(4, 8, True))}, "and those of this format it does not unpack",
            "use `format: pack-quantized`",
        ),
        ({**STORED, KEPT: Stored("pack-quantized", integers(8, 8, True))}, "which it does for one scheme alone",
         "drop `overrides`"),
        ({PACKED: Stored("float-quantized", PRESETS["fp8"])}, "and then it does not round their inputs",
         "choose a scheme of weights alone, such as `w4a16`"),
    ],
)  # fmt: skip
def test_what_cannot_be_unpacked_on_loading_is_refused(stored: dict[str, Stored], problem: str, remedy: str) -> None:
    refused = checkpoint_config.refuse(stored, Linears(MODULES, needed=True))
    assert refused is not None
    assert (refused.problem, refused.remedy) == (READS + ("packed ones that it unpacks, " + problem), remedy)
    assert checkpoint_config.refuse(stored, Linears(MODULES)) is None


def test_small_floats_of_a_float32_model_are_unpacked_on_loading() -> None:
    """compressed-tensors would leave them in bf16."""
    stored = {PACKED: Stored("nvfp4-pack-quantized", PRESETS["nvfp4a16"])}
    assert checkpoint_config.write(stored, TENSORS, None)["dequantize"] is True
    half = {name: replace(header, dtype="BF16") for name, header in TENSORS.items()}
    assert "dequantize" not in checkpoint_config.write(stored, half, None)
    assert checkpoint_config.refuse(stored, Linears(), TENSORS) is None
    mixed = {**stored, KEPT: Stored("pack-quantized", integers(8, 8, True))}
    assert checkpoint_config.refuse(mixed, Linears(), half) is None
    assert checkpoint_config.refuse(mixed, Linears(), TENSORS) == (
        (
            "the model is not stored in bfloat16, to which compressed-tensors unpacks small floats; transformers can "
            "only load packed ones that it unpacks, which it does for one scheme alone"
        ),
        "drop `overrides`",
    )


def test_formats_of_different_libraries_in_one_checkpoint() -> None:
    mixed = {**STORED, KEPT: Stored("gptq", integers(4, 8, True))}
    assert checkpoint_config.refuse_together(mixed) == (
        "one checkpoint cannot hold `gptq` and `pack-quantized`", "use formats of compressed-tensors alone",
    )  # fmt: skip


def test_codebooks_share_a_checkpoint_with_nothing_else() -> None:
    mixed = {**STORED, KEPT: Stored("bitsandbytes", PRESETS["nf4"])}
    assert checkpoint_config.refuse_together(mixed) == (
        "one checkpoint cannot hold `bitsandbytes` and `pack-quantized`", "use formats of compressed-tensors alone",
    )  # fmt: skip
    two = {"a": Stored("bitsandbytes", PRESETS["fp4"]), KEPT: Stored("bitsandbytes", PRESETS["nf4"])}
    assert checkpoint_config.refuse_together(two) == (
        "`bitsandbytes` checkpoints have one codebook for all modules", "drop `overrides`",
    )  # fmt: skip


def test_several_formats_of_compressed_tensors_are_named_by_group() -> None:
    stored = {**STORED, KEPT: Stored("float-quantized", PRESETS["fp8"])}
    assert checkpoint_config.refuse_together(stored) is None
    config = checkpoint_config.write(stored, TENSORS, None)
    assert config["format"] == "mixed-precision"
    assert [(group["format"], group["targets"]) for group in config["config_groups"].values()] == [
        ("pack-quantized", [r"re:^decoder\.layers\.\d+\.fc1$"]),
        ("float-quantized", [r"re:^decoder\.layers\.\d+\.cross\.k_proj$"]),
    ]
    packing = formats.parse(config)
    assert packing is not None
    assert {module: packing.scheme(module) for module in stored} == {m: own.scheme for m, own in stored.items()}

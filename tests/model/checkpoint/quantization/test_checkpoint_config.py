from __future__ import annotations

import pytest

from runner.contracts.facts import TensorHeader
from runner.contracts.model_description import LinearModule, Linears
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization import checkpoint_config
from runner.model.checkpoint.quantization.scheme import integers

PACKED, KEPT = "decoder.layers.0.fc1", "decoder.layers.0.cross.k_proj"
SCHEMES = {PACKED: integers(4, 8, True)}
TENSORS = {f"{name}.weight": TensorHeader(f"{name}.weight", "F32", (8, 8), "s", 0, 256) for name in (PACKED, KEPT)}
MODULES = (
    LinearModule(f"model.{PACKED}", PACKED, True),
    LinearModule(f"model.{KEPT}", KEPT, False),
    LinearModule("cls.decoder", None, True),
)
READS = (
    "transformers' code of this model reads the weights of linear modules while it loads them; it can only load packed "
    "ones that it unpacks, "
)


def test_everything_that_is_not_packed_is_named_as_the_model_and_as_the_checkpoint_name_it() -> None:
    config = checkpoint_config.write(formats.find("pack-quantized"), SCHEMES, TENSORS, Linears(MODULES))
    assert config["ignore"] == ["cls.decoder", KEPT, "lm_head", f"model.{KEPT}"]
    assert "dequantize" not in config


def test_a_model_that_needs_its_weights_is_unpacked_on_loading() -> None:
    linears = Linears(MODULES, needed=True)
    config = checkpoint_config.write(formats.find("pack-quantized"), SCHEMES, TENSORS, linears)
    assert config["dequantize"] is True
    assert checkpoint_config.refuse(formats.find("pack-quantized"), SCHEMES, linears) is None


@pytest.mark.parametrize(
    ("format", "schemes", "problem", "remedy"),
    [
        ("gptq", SCHEMES, "and those of this format it does not unpack", "use `format: pack-quantized`"),
        ("pack-quantized", {**SCHEMES, KEPT: integers(8, 8, True)}, "which it does for one scheme alone",
         "drop `overrides`"),
    ],
)  # fmt: skip
def test_what_cannot_be_unpacked_on_loading_is_refused(format: str, schemes: dict, problem: str, remedy: str) -> None:  # type: ignore[type-arg]
    refused = checkpoint_config.refuse(formats.find(format), schemes, Linears(MODULES, needed=True))
    assert refused == (READS + problem, remedy)
    assert checkpoint_config.refuse(formats.find(format), schemes, Linears(MODULES)) is None

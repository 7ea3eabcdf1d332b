"""Blocks of zeros, weights that are not numbers, inputs beyond the calibrated range: in every element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import StepFailed
from runner.model.checkpoint.reader import CheckpointReader
from runner.steps.quantize import rtn
from tests.host import Host
from tests.model.checkpoint.formats.checkpoints import load_as_computed
from tests.steps.quantize.test_schemes import IDS, SIZES, logits, measured, reference
from tests.tiny import save

UP = "model.layers.0.mlp.up_proj"
SCHEMES: list[dict[str, Any]] = [
    {"bits": 4, "group_size": 32}, {"scheme": "fp8"}, {"scheme": "fp8_block"}, {"scheme": "nvfp4a16"},
    {"scheme": "mxfp4a16"}, {"scheme": "mxfp8a16"},
]  # fmt: skip


def with_weight(folder: Path, rows: slice, value: float) -> Path:
    """A model of one layer in bfloat16, one matrix of which has a value in some rows."""
    save(folder, "llama", torch.bfloat16, **SIZES | {"num_key_value_heads": 4, "num_hidden_layers": 1})
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{UP}.weight"][rows, :128] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_blocks_of_zeros_stay_zero_and_load(tmp_path: Path) -> None:
    source = with_weight(tmp_path / "model", slice(0, 128), 0.0)
    for number, params in enumerate(SCHEMES):
        host = Host(tmp_path / str(number), "quantize.rtn", source, **params)
        rtn.run(host)
        with CheckpointReader(host.out_dir) as reader:
            weight = reader.read_module_weight(UP)
        assert not weight[:128].any()
        assert weight[128:].any()
        assert measured(host.out_dir, tmp_path / f"m{number}") == pytest.approx(reference(host.out_dir), rel=2e-3)


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("-inf"), "infinite")])
def test_weights_that_are_no_numbers_are_named(value: float, what: str, tmp_path: Path) -> None:
    source = with_weight(tmp_path / "model", slice(7, 8), value)
    for number, params in enumerate(SCHEMES):
        with pytest.raises(StepFailed) as caught:
            rtn.run(Host(tmp_path / str(number), "quantize.rtn", source, **params))
        assert str(caught.value) == (
            f"`{UP}.weight` in model.safetensors holds 128 {what} values, the first at [7, 0]"
        )  # fmt: skip


@pytest.mark.parametrize("scheme", ["fp8", "w8a8"])
def test_inputs_beyond_the_calibrated_range_saturate(scheme: str, tmp_path: Path) -> None:
    """As compressed-tensors clips them: E4M3 has no infinity, and NaN beyond 448."""
    source = save(tmp_path / "model", "llama", **SIZES | {"num_hidden_layers": 1})
    ids = torch.full((1, 8), int(IDS[0, 0]))  # a single token, whose inputs are smaller than those of others
    host = Host(tmp_path / "step", "quantize.rtn", source, ids, scheme=scheme, activations="static")
    rtn.run(host)
    with torch.no_grad():
        torch.testing.assert_close(logits(host.out_dir, rounds=True), load_as_computed(host.out_dir, IDS)(IDS).logits)

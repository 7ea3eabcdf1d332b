"""`grid: exact` of `quantize.rtn` on a checkpoint of MXFP4 values, and on others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import StepFailed
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.reader import CheckpointReader
from runner.recipe.schema.load import defaults
from runner.steps.quantize import rtn
from tests.host import Host
from tests.methods.test_exact_casts import blocks
from tests.steps.quantize.test_schemes import SIZES
from tests.tiny import save


def test_a_checkpoint_of_mxfp4_becomes_nvfp4_without_loss(tmp_path: Path) -> None:
    source = tmp_path / "model"
    save(source, "llama", torch.bfloat16, **SIZES | {"num_hidden_layers": 1})
    tensors = load_file(source / "model.safetensors")
    linears = sorted(name for name in tensors if name.endswith("_proj.weight"))
    for number, name in enumerate(linears):
        rows, columns = tensors[name].shape
        tensors[name] = blocks(rows, columns, 8, seed=number)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    host = Host(tmp_path / "exact", "quantize.rtn", source, scheme="nvfp4a16", grid="exact")
    result = rtn.run(host)
    assert result.metrics["weight_error"] == 0
    with CheckpointReader(host.out_dir) as reader:
        assert all(torch.equal(reader.read_weight(name), tensors[name]) for name in linears)
    first = "model.layers.0.mlp.down_proj"
    tensors[f"{first}.weight"][3, 32:48] = 4.0
    tensors[f"{first}.weight"][3, 40] = 5.0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepFailed) as error:
        rtn.run(Host(tmp_path / "other", "quantize.rtn", source, scheme="nvfp4a16", grid="exact"))
    assert error.value.message == (
        f"`{first}` cannot be cast exactly: in row 3, columns 32 to 47 are not all levels times one power of two; the "
        "first that would change, in column 40, is 5"
    )
    assert error.value.help == "use `grid: mse`, which rounds; or `ignore` the module"


def test_what_cannot_be_exact_is_refused() -> None:
    assert rtn._check_exact(defaults("quantize.rtn", {"scheme": "nvfp4a16", "grid": "exact"})) == []
    params = defaults("quantize.rtn", {"scheme": "w8a8", "grid": "exact"})
    what = "`grid: exact` casts to floats in groups, whose scales can be powers of two"
    message = f"{what}, not to 8-bit, symmetric, per channel"
    assert [(each.code, each.message, each.help) for each in rtn._check_exact(params)] == [
        ("R658", message, "use `scheme: nvfp4a16`, `mxfp4a16` or `mxfp8a16`")
    ]
    assert rtn.castable(PRESETS["mxfp8a16"])
    assert not any(rtn.castable(PRESETS[name]) for name in ("fp8", "fp8_block", "w4a16", "nf4"))

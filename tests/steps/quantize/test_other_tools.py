"""Checkpoints that compressed-tensors itself writes: evaluations compute what transformers computes on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.steps.quantize.test_schemes import SIZES, measured, reference
from tests.tiny import save

LARGEST = 4.0  # of the inputs: some are clipped


def written_by_compressed_tensors(folder: Path, preset: str, dense: Path) -> Path:
    """A checkpoint of one of its presets, with its own scales of weights and one scale for all inputs."""
    import compressed_tensors.quantization as ct
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(dense)
    scheme = ct.preset_name_to_scheme(preset, ["Linear"])
    config = ct.QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    ct.apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        args, weight, general = scheme.weights, module.weight.data, None
        if args.strategy == "tensor_group":
            general = module.weight_global_scale.data = generate_gparam(weight.amin(), weight.amax())
        low, high = weight.amin().reshape(1), weight.amax().reshape(1)
        if args.group_size:
            groups = weight.unflatten(-1, (-1, args.group_size))
            low, high = groups.amin(-1), groups.amax(-1)
        scale, _ = calculate_qparams(low, high, args, global_scale=general)
        module.weight_scale.data = scale.to(module.weight_scale.dtype)
        if hasattr(module, "input_global_scale"):
            module.input_global_scale.data = torch.tensor([2688 / LARGEST])
        if hasattr(module, "input_scale"):
            module.input_scale.data = torch.tensor([LARGEST / 448], dtype=module.input_scale.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    return folder


@pytest.mark.parametrize("preset", ["FP8", "NVFP4", "NVFP4A16", "MXFP4", "MXFP8"])
def test_they_are_measured_as_transformers_computes_them(preset: str, tmp_path: Path) -> None:
    dense = save(tmp_path / "dense", dtype=torch.bfloat16, **SIZES)
    made = written_by_compressed_tensors(tmp_path / "made", preset, dense)
    ours = measured(made, tmp_path / "scratch")
    assert ours == pytest.approx(reference(made), rel=2e-3)
    assert abs(ours - measured(dense, tmp_path / "dense-scratch")) > 1e-6

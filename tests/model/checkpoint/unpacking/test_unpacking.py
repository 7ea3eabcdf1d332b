"""Weights in low precision, unpacked: equal to their owners' decoders, or to a naive one where the owner is no package

of the test environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import RecipeError
from runner.model.architecture import inspect
from runner.model.checkpoint import unpacking
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.unpacking import fp8, mxfp4
from runner.model.checkpoint.unpacking.protocol import Weight
from runner.model.layerwise import unpacked_checkpoint
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host
from tests.model.checkpoint.unpacking import low_precision


@pytest.mark.parametrize("form", low_precision.FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_numbers_of_each_form(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    folder = tiny.save(tmp_path / "model", dtype=dtype)
    dense = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    numbers = low_precision.make(folder, form)
    (tmp_path / "out").mkdir()
    account = unpacked_checkpoint.write(folder, tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert set(made) == set(dense)
    for name, tensor in made.items():
        if name in numbers:
            wanted = numbers[name].float()
            if form == "int8":  # the owner multiplies by 1/127, once rounded
                torch.testing.assert_close(tensor.float(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
            else:
                assert torch.equal(tensor, wanted.to(dtype)), name
        else:
            assert torch.equal(tensor, dense[name]), name
        assert tensor.dtype == dtype
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    changed = {name for name, fate in account.fates.items() if fate.fate == "changed"}
    assert changed == set(load_file(folder / "model.safetensors")) - (set(dense) - set(numbers))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fp8_equals_transformers(dtype: torch.dtype) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    torch.manual_seed(0)
    codes = torch.randint(0, 255, (2, 96, 128), dtype=torch.uint8)
    codes[codes & 127 == 127] = 0  # NaN
    weight, scales = codes.view(torch.float8_e4m3fn), torch.rand(2, 6, 4)
    config = {"weight_block_size": [16, 32]}
    ours = fp8.unpack(Weight("w", (2, 96, 128), ("w", "s")), config, {}, {"w": weight, "s": scales}.__getitem__)
    for index in range(2):
        theirs = Fp8Dequantize(None)._dequantize_one(weight[index], scales[index], output_dtype=dtype)
        assert torch.equal(ours[index].to(dtype), theirs)


def test_a_checkpoint_of_fp8_equals_transformers_own_reading(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    folder = tiny.save(tmp_path / "model", dtype=torch.bfloat16)
    low_precision.make(folder, "fp8_even")
    (tmp_path / "out").mkdir()
    unpacked_checkpoint.write(folder, tmp_path / "out")
    how = FineGrainedFP8Config(weight_block_size=(16, 16), dequantize=True)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=how)
    ours: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert ours.dtype == torch.bfloat16
    wanted = theirs.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())


def test_fp8_with_one_scale_and_with_exponents() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 448.0]]).to(torch.float8_e4m3fn)
    one = fp8.unpack(Weight("w", (2, 2), ("w", "s")), {}, {}, {"w": weight, "s": torch.tensor(0.25)}.__getitem__)
    assert one.tolist() == [[0.25, -0.5], [0.125, 112.0]]
    byte = torch.tensor([[126]], dtype=torch.uint8)
    half = fp8.unpack(Weight("w", (2, 2), ("w", "s")), {}, {}, {"w": weight, "s": byte}.__getitem__)
    assert half.tolist() == [[0.5, -1.0], [0.25, 224.0]]


def test_mxfp4_equals_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (3, 8, 4, 16), dtype=torch.uint8)
    scales = torch.randint(100, 150, (3, 8, 4), dtype=torch.uint8)
    tensors = {"w_blocks": blocks, "w_scales": scales}
    weight = Weight("w", (3, 128, 8), ("w_blocks", "w_scales"))
    ours = mxfp4.unpack(weight, {}, {}, tensors.__getitem__).to(torch.bfloat16)
    assert torch.equal(ours, convert_moe_packed_tensors(blocks, scales))


def test_gpt_oss_equals_transformers_own_reading(tmp_path: Path) -> None:
    """A model whose experts are stored as MXFP4 blocks: its tensors, and its perplexity by the stream."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    torch.manual_seed(0)
    sizes = tiny.GROUPED | {"hidden_size": 64, "head_dim": 16, "layer_types": ["full_attention"] * 3}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    folder = tmp_path / "model"
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **sizes, **experts))
    model.to(torch.bfloat16).save_pretrained(folder)
    stored = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            count, columns, rows = tensor.shape
            stored[f"{name}_blocks"] = torch.randint(0, 256, (count, rows, columns // 32, 16), dtype=torch.uint8)
            stored[f"{name}_scales"] = torch.randint(118, 124, (count, rows, columns // 32), dtype=torch.uint8)
        else:
            stored[name] = tensor
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    assert inspect.facts(folder, "m").unpacked.keys() == {
        f"model.layers.{layer}.mlp.experts.{name}" for layer in range(3) for name in ("gate_up_proj", "down_proj")
    }
    (tmp_path / "out").mkdir()
    unpacked_checkpoint.write(folder, tmp_path / "out")
    how = Mxfp4Config(dequantize=True)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=how)
    ours: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted = theirs.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())
    ids = tiny.tokens()
    host = Host(tmp_path / "perplexity", "evaluate.perplexity", tmp_path / "out", ids)
    measured = find("evaluate.perplexity").run(host).metrics["loss"]
    with torch.no_grad():
        logits = theirs.float()(input_ids=ids).logits[:, :-1].flatten(0, 1)
    expected = float(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
    assert measured == pytest.approx(expected, rel=5e-3)


def refused(folder: Path) -> tuple[str, str]:
    with pytest.raises(RecipeError) as caught:
        inspect.facts(folder, "m")
    [found] = caught.value.diagnostics
    assert found.help == "download the checkpoint again, or start from the model as it was before it was quantized"
    return found.code, found.message


LOST = {
    ("fp8", "model.layers.1.mlp.up_proj.weight_scale_inv"):
        "`m` stores `model.layers.1.mlp.up_proj.weight` as F8_E4M3, and its scales "
        "`model.layers.1.mlp.up_proj.weight_scale_inv` are missing",
    ("awq", "model.layers.1.mlp.up_proj.scales"):
        "`m` stores `model.layers.1.mlp.up_proj.qweight` by AWQ, and `model.layers.1.mlp.up_proj.scales` is missing",
    ("nf4", "model.layers.1.mlp.up_proj.weight.absmax"):
        "`m` stores `model.layers.1.mlp.up_proj.weight` by bitsandbytes, and "
        "`model.layers.1.mlp.up_proj.weight.absmax` is missing",
    ("int8", "model.layers.1.mlp.up_proj.SCB"):
        "`m` stores `model.layers.1.mlp.up_proj.weight` as I8, and its scales `model.layers.1.mlp.up_proj.SCB` are "
        "missing",
}  # fmt: skip


@pytest.mark.parametrize(("form", "name"), LOST)
def test_scales_that_are_missing(tmp_path: Path, form: str, name: str) -> None:
    folder = tiny.save(tmp_path / "m")
    low_precision.make(folder, form)
    stored = load_file(folder / "model.safetensors")
    del stored[name]
    save_file(stored, folder / "model.safetensors")
    assert refused(folder) == ("R642", LOST[form, name])


def test_other_versions_and_shapes(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "m")
    low_precision.make(folder, "awq")
    config = json.loads((folder / "config.json").read_text())
    quantization = config["quantization_config"]
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization | {"bits": 8}}))
    message = "`m` is stored by AWQ's version `gemm` with 8 bits; `gemm` with 4 can be read"
    assert refused(folder) == ("R642", message)
    folder = tiny.save(tmp_path / "n")
    low_precision.make(folder, "fp8")
    config = json.loads((folder / "config.json").read_text())
    quantization = config["quantization_config"] | {"weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    message = (
        "`m` stores `model.layers.0.mlp.down_proj.weight_scale_inv` as [2, 4]; blocks of "
        "`model.layers.0.mlp.down_proj.weight` [32, 64] need [1, 1]"
    )
    assert refused(folder) == ("R642", message)


def test_packed_formats_unpack_as_they_are_read(tmp_path: Path) -> None:
    """What `quantize.rtn` packed, without the mark of a recipe, becomes what the reader gives."""
    folder = tiny.save(tmp_path / "model", dtype=torch.bfloat16)
    for format, bits in (("pack-quantized", 3), ("gptq", 4)):
        host = Host(tmp_path / format, "quantize.rtn", folder, bits=bits, group_size=32, format=format)
        find("quantize.rtn").run(host)
        (tmp_path / f"{format}-dense").mkdir()
        unpacked_checkpoint.write(host.out_dir, tmp_path / f"{format}-dense")
        made = load_file(tmp_path / f"{format}-dense" / "model.safetensors")
        assert set(made) == set(load_file(folder / "model.safetensors"))
        with CheckpointReader(host.out_dir) as reader:
            for name, tensor in made.items():
                assert torch.equal(tensor, reader.read_weight(name).to(torch.bfloat16)), name


def test_dense_checkpoints_are_not_unpacked() -> None:
    assert unpacking.find({}) is None
    assert unpacking.find({"quantization_config": {"quant_method": "hqq"}}) is None

"""`build.gguf`: read back by transformers' own GGUF loader and by the gguf package."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import Inputs, Result
from runner.errors import StepFailed
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.runtime import open as runtimes
from runner.runtime.transformers import Transformers
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host

gguf = pytest.importorskip("gguf")

KIND = "build.gguf"
MODEL = Path(__file__).parents[3] / "runner" / "demo" / "models" / "tiny-llama"
EXACT = {"dense": "f32", "embedding": "f32"}
# Wide enough for blocks of 32; heads, key-value heads and the width of a head all differ.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 4096, "head_dim": 32}


def model(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A tiny model with the tokenizer of the embedded one."""
    tiny.save(folder, name, dtype, **(SIZES | changes))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / file, folder)
    return folder


def vary(checkpoint: Path) -> None:
    """Give biases and norms, which a new model has all 0 and 1, values of their own."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(5)
    for name in sorted(tensors):
        if tensors[name].ndim == 1:
            tensors[name] += 0.3 * torch.randn(tensors[name].shape, generator=generator)
    save_file(tensors, path, metadata={"format": "pt"})


def quantized(folder: Path, checkpoint: Path, **params: Any) -> Path:
    host = Host(folder, "quantize.rtn", checkpoint, **({"bits": 4, "group_size": 32} | params))
    find("quantize.rtn").run(host)
    return host.out_dir


def built(folder: Path, checkpoint: Path, **params: Any) -> tuple[Path, Result]:
    host = Host(folder / "gguf", KIND, checkpoint, **params)
    result = find(KIND).run(host)
    return host.out_dir, result


def gap(made: Path, checkpoint: Path) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    ids = tiny.tokens(2, 24, 4096).numpy()
    wanted = Transformers(checkpoint, dtype=torch.float32, exact=True).prefill(ids)
    found = runtimes.open(made).prefill(ids)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(("name", "changes"), [
    ("llama", {}), ("llama_tied", {}), ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}), ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": None, "head_dim": 16}), ("qwen3", {"head_dim": 128}),
], ids=["grouped", "tied", "theta", "plain heads", "mistral", "qwen2", "qwen3"])  # fmt: skip
def test_transformers_reads_the_same_model(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    checkpoint = model(tmp_path / "model", name, **changes)
    vary(checkpoint)
    made, result = built(tmp_path, checkpoint, **EXACT)
    assert gap(made, checkpoint) < 1e-6
    assert result.metrics == {"bytes": (made / "model.gguf").stat().st_size, "scale_rounding": 0.0}


@pytest.mark.parametrize(("params", "type"), [
    ({}, "q4_0"), ({"group_size": 64}, "q4_0"), ({"group_size": "channel"}, "q4_0"), ({"bits": 3}, "q4_0"),
    ({"symmetric": False}, "q4_1"), ({"bits": 2, "symmetric": False}, "q4_1"), ({"bits": 8}, "q8_0"),
    ({"bits": 5}, "q8_0"), ({"bits": 6, "symmetric": False}, "q8_0"), ({"format": "gptq"}, "q4_0"),
    ({"format": "gptq", "symmetric": False}, "q4_1"),
], ids=lambda value: str(value))  # fmt: skip
def test_integers_stay_as_they_are(tmp_path: Path, params: dict[str, Any], type: str) -> None:
    """In a float16 model the scales are fp16 already: only the minimum of Q4_1 is rounded."""
    source = model(tmp_path / "model", dtype=torch.float16, intermediate_size=128)
    checkpoint = quantized(tmp_path, source, **params)
    made, result = built(tmp_path, checkpoint, embedding="f16")
    assert result.details["types"][type] == 21
    if type == "q4_1":
        assert result.metrics["scale_rounding"] < 2**-10
        assert gap(made, checkpoint) < 5e-3
    else:
        assert result.metrics["scale_rounding"] == 0.0
        assert gap(made, checkpoint) < 1e-6


def test_the_gguf_package_reads_the_weights(tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path, model(tmp_path / "model", dtype=torch.float16))
    made, _ = built(tmp_path, checkpoint)
    from runner.model.checkpoint.reader import CheckpointReader

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(made / "model.gguf").tensors}
    with CheckpointReader(checkpoint) as reader:
        for name, module in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
            found = tensors[f"blk.1.{name}.weight"]
            assert found.tensor_type.name == "Q4_0"
            wanted = reader.read_module_weight(f"model.layers.1.{module}").float().numpy()
            np.testing.assert_allclose(gguf.dequantize(found.data, found.tensor_type), wanted, rtol=2**-11)
    assert tensors["token_embd.weight"].tensor_type.name == "F16"
    assert tensors["output_norm.weight"].tensor_type.name == "F32"


def test_dense_weights_are_rounded_as_asked(tmp_path: Path) -> None:
    checkpoint = model(tmp_path / "model")
    sizes = {}
    for type, limit in (("q8_0", 0.2), ("q4_1", 0.9), ("bf16", 0.2)):
        made, result = built(tmp_path / type, checkpoint, dense=type, embedding=type)
        assert result.details["types"] == {"f32": 7, type: 23}
        assert 1e-5 < gap(made, checkpoint) < limit
        sizes[type] = result.metrics["bytes"]
    assert sizes["q4_1"] < sizes["q8_0"] < sizes["bf16"]


def test_the_folder(tmp_path: Path) -> None:
    made, _ = built(tmp_path, model(tmp_path / "model"))
    engine = json.loads((made / "engine.json").read_text())
    assert engine == {
        "format": "gguf", "file": "model.gguf", "architecture": "llama", "vocabulary": 4096, "context": 64,
        "types": {"f16": 23, "f32": 7}, "packages": {"gguf": engine["packages"]["gguf"]},
        "source": {"digest": "0" * 64},
    }  # fmt: skip
    assert {path.name for path in made.iterdir()} >= {"model.gguf", "tokenizer.json", "config.json", "README.md"}
    assert "llama-cli -m model.gguf" in (made / "README.md").read_text()
    again, _ = built(tmp_path / "again", tmp_path / "model")
    assert (again / "model.gguf").read_bytes() == (made / "model.gguf").read_bytes()


def test_the_tokenizer_in_the_file(tmp_path: Path) -> None:
    """transformers makes of the metadata a tokenizer that gives the ids of the original."""
    from transformers import AutoTokenizer

    made, _ = built(tmp_path, MODEL)
    alone = Path(shutil.copytree(made, tmp_path / "alone", ignore=shutil.ignore_patterns("tokenizer*", "*.json")))
    found = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
    wanted = AutoTokenizer.from_pretrained(MODEL)
    text = "def naïve(x):\n    return x**2  # two  spaces\n\n\nclass A: 'ß€😀' </s> 12345\n"
    assert found(text, add_special_tokens=False)["input_ids"] == wanted(text, add_special_tokens=False)["input_ids"]
    fields = gguf.GGUFReader(made / "model.gguf").fields
    read = {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in fields.items()}
    assert (read["model"], read["pre"], read["bos_token_id"], read["eos_token_id"]) == ("gpt2", "gpt-2", 1, 2)
    assert (read["padding_token_id"], read["unknown_token_id"], read["add_bos_token"]) == (3, 0, False)
    assert read["token_type"][:5] == [3, 3, 3, 3, 1]


def complaints(folder: Path, params: dict[str, Any] | None = None, **changes: Any) -> list[tuple[str, str | None]]:
    checkpoint = facts(folder, "demo")
    checkpoint = replace(checkpoint, config=ModelConfig.of({**checkpoint.config.raw, **changes}))
    host = Host(folder.parent / "host", KIND, folder, **(params or {}))
    given = Inputs(checkpoint, {}, {}, machine_facts("cpu"))
    found = find(KIND).check(host.params, given)
    assert all(diagnostic.code in ("R471", "R479") for diagnostic in found)
    assert find(KIND).estimate(host.params, given).memory > 200 << 20
    return [(diagnostic.message, diagnostic.help) for diagnostic in found]


OTHER = "use build.onnx, or deploy the checkpoint itself"


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "gpt2"}, "models of the type `gpt2` cannot be written as GGUF; llama, mistral, qwen2, qwen3 can"),
    ({"attention_bias": True}, "config.json has `attention_bias` = True, which GGUF's llama models do not have"),
    ({"sliding_window": 8}, "config.json has `sliding_window` = 8, which GGUF's llama models do not have"),
    ({"hidden_act": "gelu"}, "config.json has `hidden_act` = gelu; GGUF's llama models have silu"),
    ({"rope_parameters": {"rope_type": "llama3"}},
     "the rotary embedding is of the type `llama3`; only `default` is written as GGUF"),
], ids=["type", "bias", "window", "activation", "rope"])  # fmt: skip
def test_models_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = model(tmp_path / "model")
    assert complaints(folder) == []
    assert complaints(folder, **changes) == [(message, OTHER)]


def test_integers_that_no_block_holds(tmp_path: Path) -> None:
    dense = model(tmp_path / "model")
    assert complaints(quantized(tmp_path / "a", dense, group_size=16)) == [(
        "`model.layers.0.mlp.down_proj` (and 20 more) has group_size 16; blocks of GGUF have 32 columns and one scale",
        "quantize with a group_size that is a multiple of 32",
    )]  # fmt: skip
    assert complaints(quantized(tmp_path / "b", dense, bits=8, symmetric=False)) == [(
        ("`model.layers.0.mlp.down_proj` (and 20 more) has asymmetric 8-bit integers, which less their zero point do "
         "not fit the 8 bits of Q8_0"),
        "quantize with `symmetric: true`, or with at most 7 bits",
    )]  # fmt: skip
    narrow = model(tmp_path / "narrow", intermediate_size=72)
    assert complaints(narrow) == []
    assert complaints(narrow, {"dense": "q8_0"}) == [(
        "`model.layers.0.mlp.down_proj` (and 2 more) has 72 columns, which blocks of 32 do not divide",
        "use `dense: f16`",
    )]  # fmt: skip


def test_a_tokenizer_that_is_missing_or_of_another_sort(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["byte_fallback"] = True
    path.write_text(json.dumps(document))
    with pytest.raises(StepFailed) as caught:
        built(tmp_path, folder)
    assert caught.value.message == (
        f"the tokenizer in `{folder}` is not byte-level BPE that splits texts in one of the ways that are written into "
        "GGUF: dbrx, deepseek-coder, deepseek-v3, gpt-2, gpt-4o, llama-bpe, qwen2, qwen35, seed-coder, smollm, tekken"
    )
    planned = replace(facts(folder, "m"), tokenizer=folder)
    [complaint] = find(KIND).check({"dense": "f16"}, Inputs(planned, {}, {}, machine_facts("cpu")))
    assert (complaint.code, complaint.message, complaint.help) == (
        "R479", caught.value.message, "convert the checkpoint with llama.cpp's convert_hf_to_gguf.py"
    )  # fmt: skip
    path.unlink()
    with pytest.raises(StepFailed) as caught:
        built(tmp_path, folder)
    assert caught.value.message == f"`{folder}` has no tokenizer.json, which GGUF is made of"
    assert not (tmp_path / "gguf" / "out" / "model.gguf").exists()


def test_values_that_float16_cannot_hold(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = model(tmp_path / "model", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StepFailed) as caught:
        built(tmp_path, folder)
    assert caught.value.message == "`model.layers.1.mlp.up_proj.weight` has values that float16 cannot hold"
    assert caught.value.help == "use `dense: bf16`"

"""`build.gguf`: read back by transformers' own GGUF loader and by the gguf package."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from runner.contracts.context import DataFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import Inputs
from runner.errors import Interrupted, StepFailed
from runner.export import gguf_splitting, tables
from runner.export.gguf_architecture import TYPES
from runner.export.gguf_layouts import FORMATS, pack
from runner.methods import block_gptq, block_quantization
from runner.methods.gptq import factorize
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.recipe.schema.load import defaults
from runner.runtime import open as runtimes
from runner.runtime.transformers import Transformers, load
from runner.steps import forward_cost
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host
from tests.steps.build import gguf_models
from tests.steps.build.gguf_models import EXACT, KIND, MODEL, built, model

gguf = pytest.importorskip("gguf")


def quantized(folder: Path, checkpoint: Path, **params: Any) -> Path:
    host = Host(folder, "quantize.rtn", checkpoint, **({"bits": 4, "group_size": 32} | params))
    find("quantize.rtn").run(host)
    return host.out_dir


def gap(made: Path, checkpoint: Path) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    ids = tiny.tokens(2, 24, 4096).numpy()
    wanted = Transformers(checkpoint, dtype=torch.float32, exact=True).prefill(ids)
    found = runtimes.open(made).prefill(ids)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


# Those in which something of llama.cpp's form differs from transformers' each; the others are nightly.
QUICK = ("llama3", "llama biases", "mixtral", "qwen2_moe", "olmo2 tied", "gemma3", "phi3 partly rotated", "granite")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in gguf_models.CASES]
)
def test_the_file_holds_the_model(tmp_path: Path, name: str) -> None:
    """benchmarks/readers/gguf_architectures.py compares the same models in llama.cpp."""
    checkpoint = gguf_models.case(tmp_path / "model", name)
    made, result = built(tmp_path, checkpoint, **EXACT)
    assert gap(made, checkpoint) < 5e-6
    size = (made / "model.gguf").stat().st_size
    assert result.metrics == {"bytes": size, "scale_rounding": 0.0, "bits_per_weight": 32.0}
    reader = gguf.GGUFReader(made / "model.gguf")
    own = TYPES[json.loads((checkpoint / "config.json").read_text())["model_type"]].name
    [architecture] = [key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == own]
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[architecture]}
    assert {re.sub(r"blk\.\d+", "blk.{bid}", tensor.name.rpartition(".")[0]) for tensor in reader.tensors} <= known


READ = ("llama", "llama tied", "mistral", "qwen2", "phi3", "stablelm", "starcoder2")


@pytest.mark.parametrize(
    "name", [name if name in ("llama", "stablelm") else pytest.param(name, marks=pytest.mark.nightly) for name in READ]
)
def test_transformers_reads_the_same_model(tmp_path: Path, name: str) -> None:
    """Others it reads as another model or not at all: see docs/engines.md."""
    checkpoint = gguf_models.case(tmp_path / "model", name)
    made, _ = built(tmp_path, checkpoint, **EXACT)
    alone = Path(shutil.copytree(made, tmp_path / "alone", ignore=shutil.ignore_patterns("*.json")))
    found: Any = AutoModelForCausalLM.from_pretrained(alone, gguf_file="model.gguf", dtype=torch.float32)
    ids = tiny.tokens(2, 24, 4096)
    with torch.inference_mode():
        logits = found(ids).logits.numpy()
    wanted = Transformers(checkpoint, dtype=torch.float32, exact=True).prefill(ids.numpy())
    assert float(np.abs(logits - wanted).max() / np.abs(wanted).max()) < 1e-6


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
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"  # of 64 columns, where Q6_K takes 256
    assert tensors["output_norm.weight"].tensor_type.name == "F32"


def test_dense_weights_are_rounded_as_asked(tmp_path: Path) -> None:
    checkpoint = model(tmp_path / "model")
    sizes = {}
    for type, limit in (("q4_1", 0.9), ("bf16", 0.2)):
        made, result = built(tmp_path / type, checkpoint, dense=type, embedding=type)
        assert result.details["types"] == {"f32": 7, type: 23}
        assert 1e-5 < gap(made, checkpoint) < limit
        sizes[type] = result.metrics["bytes"]
    assert sizes["q4_1"] < sizes["bf16"]


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
    assert all(diagnostic.code in ("R418", "R471", "R479", "R851", "R852") for diagnostic in found)
    assert find(KIND).estimate(host.params, given).memory > 200 << 20
    return [(diagnostic.message, diagnostic.help) for diagnostic in found]


OTHER = "use build.onnx, or deploy the checkpoint itself"


SCALINGS = "`default`, `linear`, `yarn` or `llama3`"
KNOWN = ", ".join(sorted(TYPES))
SAVE = "load the model with transformers and save it again: it writes every number of a configuration"
LINEAR = {"rope_type": "linear", "rope_theta": 1e4}


@pytest.mark.parametrize(("changes", "message", "help"), [
    ({"model_type": "gpt2"}, f"models of the type `gpt2` cannot be written as GGUF; {KNOWN} can", OTHER),
    ({"sliding_window": 8}, "config.json has `sliding_window` = 8, which GGUF's llama models do not have", OTHER),
    ({"layer_types": ["sliding_attention"] * 3},
     "some layers attend to a sliding window, which GGUF's llama models do not have", OTHER),
    ({"hidden_act": "gelu"}, "config.json has `hidden_act` = gelu; GGUF's llama models have silu", OTHER),
    ({"rope_parameters": {"rope_type": "dynamic"}},
     f"the rotary embedding is of the type `dynamic`; {SCALINGS} can be written for llama models", OTHER),
    ({"rope_parameters": LINEAR}, "the rotary embedding is of the type `linear` without `factor`", OTHER),
    ({"rope_parameters": {**LINEAR, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                          "truncate": False}},
     "the rotary embedding has the type `yarn` with `truncate`, which llama.cpp computes otherwise", OTHER),
    ({"rms_norm_eps": None},
     "config.json does not give `rms_norm_eps`, which a GGUF file of the architecture llama says", SAVE),
    ({"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 32, "query_pre_attn_scalar": 24},
     "config.json has `query_pre_attn_scalar` = 24; llama.cpp computes this model with 32", OTHER),
    ({"model_type": "smollm3", "no_rope_layers": [0, 1, 1]},
     "config.json has `no_rope_layers` other than every fourth layer, which llama.cpp leaves without", OTHER),
    ({"model_type": "qwen3_moe", "norm_topk_prob": False, "num_experts": 4},
     "config.json has `norm_topk_prob` = False; GGUF's qwen3moe models have True", OTHER),
    ({"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2},
     "config.json has `num_key_value_heads` = 2; GGUF's olmoe models have 4, all heads", OTHER),
], ids=lambda value: "".join(value)[:24] if isinstance(value, dict) else "")  # fmt: skip
def test_models_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str, help: str) -> None:
    folder = model(tmp_path / "model")
    assert complaints(folder) == []
    assert complaints(folder, **changes) == [(message, help)]


def test_a_window_that_llama_cpp_ignores(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "phi3", head_dim=None, sliding_window=None)
    assert complaints(folder) == []
    assert complaints(folder, sliding_window=48) == [(
        "llama.cpp ignores the sliding window of 48 positions; the file promises that many, not more",
        "use build.onnx for longer texts",
    )]  # fmt: skip


def test_tensors_without_a_place(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", attention_bias=True)
    assert complaints(folder, model_type="smollm3") == [(
        "`model.layers.0.self_attn.k_proj.bias` (and 11 more) has no place in a GGUF file of the architecture smollm3",
        OTHER,
    )]  # fmt: skip


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


def other(size: int, columns: int, names: str, got: str, wanted: str) -> tuple[str, str]:
    """The warning of matrices that get another type."""
    message = f"blocks of {size} do not divide the {columns} columns of {names}: stored as {got}, not {wanted}"
    return message, "llama.cpp does the same; a type with blocks of 32, such as q4_0, stores all matrices alike"


def test_columns_that_blocks_do_not_divide(tmp_path: Path) -> None:
    narrow = model(tmp_path / "narrow", intermediate_size=72)
    assert complaints(narrow) == []
    down, more = "`model.layers.0.mlp.down_proj` (and 2 more)", "(and 2 more)"
    assert complaints(narrow, {"dense": "q8_0"}) == [other(32, 72, down, "F16", "Q8_0")]
    assert complaints(narrow, {"dense": "q3_k_m", "embedding": "q4_k", "head": "q6_k"}) == [
        other(256, 64, "`model.embed_tokens` (and 1 more)", "Q5_0", "Q4_K"),
        other(256, 64, "`lm_head`", "Q8_0", "Q6_K"),
        other(256, 64, "`model.layers.0.self_attn.q_proj` (and 11 more)", "Q4_0", "Q3_K"),
        other(256, 64, "`model.layers.0.self_attn.v_proj` (and 1 more)", "Q5_1", "Q5_K"),
        other(256, 128, f"`model.layers.0.self_attn.o_proj` {more}", "Q5_0", "Q4_K"),
        other(256, 72, down, "F16", "Q4_K"),
    ]  # fmt: skip


def test_calibration_weighs_the_columns(tmp_path: Path) -> None:
    """The error of outputs falls; a run that was interrupted ends with the same bytes."""
    checkpoint = model(tmp_path / "model")
    ids = tiny.tokens(6, 24, 4096)
    plain, _ = built(tmp_path / "plain", checkpoint, dense="q2_k", embedding="f32")
    weighed, result = built(tmp_path / "weighed", checkpoint, ids, dense="q2_k", embedding="f32")
    assert gap(weighed, checkpoint) < gap(plain, checkpoint)
    assert result.details["types"]["q4_0"] > 0  # no 64 columns for blocks of 256
    stopped = Host(tmp_path / "stopped", KIND, checkpoint, ids, stop_after=2, dense="q2_k", embedding="f32")
    with pytest.raises(Interrupted):
        find(KIND).run(stopped)
    stopped.stop_after = None
    find(KIND).run(stopped)
    assert (stopped.out_dir / "model.gguf").read_bytes() == (weighed / "model.gguf").read_bytes()


def tensors(made: Path) -> dict[str, Any]:
    """The bytes of the tensors of a file [rows, bytes]."""
    return {each.name: np.array(each.data) for each in gguf.GGUFReader(made / "model.gguf").tensors}


@pytest.mark.parametrize(("name", "multiplied"), [("llama_tied", "token_embd.weight"), ("llama", "output.weight")])
def test_the_head_is_gptqs(name: str, multiplied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding of its own stays as it is without data; integers elsewhere do, too."""
    monkeypatch.setattr(tables, "ROWS", 1500)
    checkpoint = model(tmp_path / "model", name)
    ids = tiny.tokens(8, 24, 4096)
    params: dict[str, Any] = {"dense": "f32", "embedding": "q5_1", "head": "q5_1"}
    plain, _ = built(tmp_path / "plain", checkpoint, **params)
    made, result = built(tmp_path / "made", checkpoint, ids, **params)
    before, after = tensors(plain), tensors(made)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == [multiplied]
    original = load(checkpoint, "cpu", torch.float32).model
    with torch.no_grad():
        x = original.model(ids).last_hidden_state.flatten(0, 1)
    weight = original.get_output_embeddings().weight.detach()
    factor = factorize(2 / len(x) * x.T @ x, dampening_fraction=0.01, act_order=True)
    scales = block_quantization.quantize(weight, FORMATS["q5_1"], factor.importance())
    wanted = pack(block_gptq.compensated(weight, scales, FORMATS["q5_1"], factor), "q5_1")
    assert float((wanted == after[multiplied]).mean()) > 0.99  # sums over tokens have another order
    kind = gguf.GGMLQuantizationType.Q5_1

    def lost(data: Any) -> float:
        return float(((torch.from_numpy(gguf.dequantize(data, kind)) - weight) @ x.T).square().sum())

    assert lost(after[multiplied]) < 0.8 * lost(before[multiplied])
    engine = json.loads((made / "engine.json").read_text())
    assert engine["tables"] == result.details["tables"] == {"rounding": "gptq", "calibration": [8, 24]}
    text = "; the head is rounded by GPTQ from the head's inputs in 8 windows of 24 tokens"
    assert text in (made / "README.md").read_text()


def test_a_step_that_was_stopped_in_either_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = model(tmp_path / "model", "llama_tied")
    ids = tiny.tokens(6, 24, 4096)
    params: dict[str, Any] = {"dense": "q4_0", "embedding": "q4_0"}
    whole, _ = built(tmp_path / "whole", checkpoint, ids, **params)
    stopped = Host(tmp_path / "stopped", KIND, checkpoint, ids, stop_after=2, **params)
    for after in (2, 4, 6):
        stopped.stop_after = after
        with pytest.raises(Interrupted):
            find(KIND).run(stopped)
    stopped.stop_after = None
    find(KIND).run(stopped)
    assert stopped.layers() == [1, 2, 3, 4, 5, 6]
    assert (stopped.out_dir / "model.gguf").read_bytes() == (whole / "model.gguf").read_bytes()


def test_data_that_have_no_effect_are_warned_of(tmp_path: Path) -> None:
    complaint = (
        "`data` has no effect: no matrix of the layers, nor the head, is rounded to blocks",
        "leave it out, or set `dense` or `embedding` to a type of blocks such as q4_0",
    )
    folder = model(tmp_path / "model", "llama_tied")
    for params in ({"dense": "f16"}, {"dense": "bf16", "embedding": "iq4_nl"}):
        assert complaints(folder, {**params, "data": "calibration"}) == [complaint]
    host = Host(tmp_path / "host", KIND, folder, dense="f16", data="calibration")
    (found,) = find(KIND).check(host.params, Inputs(facts(folder, "demo"), {}, {}, machine_facts("cpu")))
    assert found.severity == "warning", "a shared recipe may be built with another type"
    for params in ({"dense": "q4_0", "embedding": "f16"}, {"dense": "f16", "embedding": "q4_0"}):
        assert complaints(folder, {**params, "data": "calibration"}) == []


def test_the_forecast_has_each_run_of_the_model(tmp_path: Path) -> None:
    found = facts(model(tmp_path / "model", "llama_tied"), "model")
    given = Inputs(found, {}, {"data": DataFacts("calibration", 8, 24, 1536, "0" * 64)}, machine_facts("cpu"))
    forward = forward_cost.estimate_forward([found], given.data["data"], given.machine)
    seconds, scratch = [], []
    for data, dense, embedding in (
        (None, "q4_0", "q4_0"),
        ("calibration", "q4_0", "f16"),
        ("calibration", "q4_0", "q4_0"),
    ):
        params = defaults(KIND, {"data": data, "dense": dense, "embedding": embedding})
        cost = find(KIND).estimate(params, given if data else replace(given, data={}))
        seconds.append(cost.seconds)
        scratch.append(cost.scratch)
        assert not data or cost.memory >= forward.memory
    assert scratch == [0, forward.scratch, forward.scratch]
    assert seconds[2] > seconds[0] + 2 * forward.seconds


CONVERT = "convert the checkpoint with llama.cpp's convert_hf_to_gguf.py"


@pytest.mark.parametrize(("changes", "message"), [
    ({"byte_fallback": True}, "the tokenizer in `{}` joins tokens in another order than llama.cpp's of SentencePiece"),
    ({"type": "Unigram"}, "the tokenizer in `{}` is of the kind Unigram, which is not written into GGUF"),
    ({"byte_fallback": True, "merges": []},
     "the tokenizer in `{}` treats spaces in another way than llama.cpp's of SentencePiece"),
], ids=["order", "kind", "spaces"])  # fmt: skip
def test_a_tokenizer_that_llama_cpp_has_not(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = model(tmp_path / "model")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"] |= changes
    path.write_text(json.dumps(document))
    planned = replace(facts(folder, "m"), tokenizer=folder)
    [complaint] = find(KIND).check(defaults(KIND, {}), Inputs(planned, {}, {}, machine_facts("cpu")))
    assert (complaint.code, complaint.message, complaint.help) == ("R479", message.format(folder), CONVERT)


def test_a_tokenizer_that_splits_in_another_way_or_is_missing(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTES]}
    path.write_text(json.dumps(document))
    with pytest.raises(StepFailed) as caught:
        built(tmp_path, folder)
    assert caught.value.message == (
        f"the tokenizer in `{folder}` is none that llama.cpp names by its tokens, and splits texts in none of the ways "
        f"that are known by their expressions: {', '.join(gguf_splitting.KNOWN)}"
    )
    assert caught.value.help == CONVERT
    path.unlink()
    with pytest.raises(StepFailed) as caught:
        built(tmp_path, folder)
    assert caught.value.message == f"`{folder}` has no tokenizer.json, which GGUF is made of"
    assert not (tmp_path / "gguf" / "out" / "model.gguf").exists()


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def test_a_tokenizer_of_sentencepiece(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    letters = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, "a": 5, "b": 6, "ab": 7, "▁ab": 8}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": n, "content": text, "special": True, **flags} for text, n in list(letters.items())[:3]]
    document = {
        "version": "1.0", "added_tokens": added, "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": letters,
                  "merges": [["a", "b"], ["▁", "ab"]]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document))
    made, _ = built(tmp_path, folder)
    fields = gguf.GGUFReader(made / "model.gguf").fields
    read = {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in fields.items()}
    assert (read["model"], read["pre"], read["add_space_prefix"]) == ("llama", "default", True)
    assert read["token_type"][:10] == [2, 3, 3, 6, 1, 1, 1, 1, 1, 5]
    assert read["scores"][4:10] == [-2.0, -2.0, -2.0, 0.0, -1.0, -1000.0]
    assert "merges" not in read


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

"""`build.onnx`: what it refuses before anything runs, what it forecasts, and the folder it leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import Inputs
from runner.export import preflight, web
from runner.export.supported import MASKS
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.quantization.scheme import integers
from runner.plan.machine import machine_facts
from runner.runtime.onnxruntime import OnnxRuntime
from runner.steps.kinds import find
from tests.export.exported import build, packed, prompts
from tests.host import Host
from tests.model.packed import GPTQ
from tests.tiny import save

KIND = "build.onnx"
MODULES = "`model.layers.0.mlp.down_proj` (as 13 more)"
MODEL = Path(__file__).parents[3] / "runner" / "demo" / "models" / "tiny-llama"


def inputs(folder: Path, **changes: Any) -> Inputs:
    found = facts(folder, "model")
    found = replace(found, config=ModelConfig.of({**found.config.raw, **changes}))
    return Inputs(found, {}, {}, machine_facts())


def said(given: Inputs, tmp_path: Path, **params: Any) -> list[tuple[str, str, str | None]]:
    host = Host(tmp_path / "host", KIND, tmp_path, **params)
    return [(d.code, d.message, d.help) for d in find(KIND).check(host.params, given)]


def test_what_can_be_exported_is_not_refused(tmp_path: Path) -> None:
    for name in ("llama", "gpt2", "gemma3_text"):
        assert said(inputs(save(tmp_path / name, name)), tmp_path) == []
    for scheme in (integers(4, 32, False), integers(3, 32, True), integers(8, "channel", True)):
        assert said(inputs(packed(tmp_path / str(scheme), scheme)), tmp_path) == []


def test_an_architecture_that_was_not_compared(tmp_path: Path) -> None:
    given = inputs(save(tmp_path / "model"), model_type="falcon")
    assert said(given, tmp_path) == [(
        "R477",
        f"models of the type `falcon` cannot be exported to ONNX; the types {', '.join(sorted(MASKS))} can",
        "deploy the checkpoint with transformers or vLLM, or choose a model of one of those types",
    )]  # fmt: skip


@pytest.mark.parametrize("written", [
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0}},
    {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}},
], ids=["scaling", "parameters", "by kind of layer"])  # fmt: skip
def test_rotary_tables_that_depend_on_the_length(written: dict[str, Any], tmp_path: Path) -> None:
    assert said(inputs(save(tmp_path / "model"), **written), tmp_path) == [(
        "R477",
        "the model's rotary embedding is of the type `dynamic`, whose tables depend on the length of the text",
        "choose a model with another `rope_type`",
    )]  # fmt: skip


def test_attention_in_both_directions(tmp_path: Path) -> None:
    given = inputs(save(tmp_path / "model", "gemma3_text"), use_bidirectional_attention=True)
    assert said(given, tmp_path) == [(
        "R477",
        "the model attends in both directions (`use_bidirectional_attention` in config.json)",
        "choose a causal model",
    )]  # fmt: skip


@pytest.mark.parametrize(("targets", "patterns", "ranks"), [
    (["q_proj"], {}, 4 + 4),
    (["model.layers.1.self_attn.q_proj"], {}, 4),
    (r".*\.0\.self_attn\.q_proj", {}, 4),
    (["q_proj"], {"layers.1.self_attn.q_proj": 8}, 4 + 8),
])  # fmt: skip
def test_the_forecast_counts_the_factors_of_adapted_modules(
    targets: Any, patterns: dict[str, int], ranks: int, tmp_path: Path
) -> None:
    plain = facts(save(tmp_path / "model", num_hidden_layers=2), "model")
    [(rows, columns)] = {(i.rows, i.columns) for i in plain.sites if i.name.endswith("q_proj")}
    own = {"r": 4, "target_modules": targets, "rank_pattern": patterns}
    sizes = [preflight.nbytes(each, "onnxruntime", "fp16") for each in (plain, replace(plain, adapter=own))]
    assert sizes[1] - sizes[0] == 2 * ranks * (rows + columns)


def test_a_dora_adapter(tmp_path: Path) -> None:
    given = inputs(save(tmp_path / "model"))
    given = replace(given, checkpoint=replace(given.checkpoint, adapter={"use_dora": True, "r": 4}))
    assert said(given, tmp_path) == [(
        "R477",
        "the checkpoint has a DoRA adapter, whose branch depends on the base weights",
        "train it with `dora: false`, or merge it first (`merge: requantize`, on a dense checkpoint `merge: auto`)",
    )]  # fmt: skip


def test_asymmetric_weights_for_tensorrt(tmp_path: Path) -> None:
    given = inputs(packed(tmp_path / "model", integers(4, 32, False)))
    assert said(given, tmp_path, target="tensorrt") == [(
        "R478",
        f"{MODULES} is quantized asymmetrically; TensorRT's INT4 and INT8 have no zero points",
        "quantize with `symmetric: true`, or use `target: onnxruntime`",
    )]  # fmt: skip


def test_groups_that_are_no_blocks(tmp_path: Path) -> None:
    given = inputs(packed(tmp_path / "model", integers(4, 24, True), hidden_size=48, num_attention_heads=4))
    assert said(given, tmp_path) == [(
        "R478",
        f"{MODULES} has group_size 24, which is no multiple of 16: MatMulNBits takes blocks of 16 to 256",
        "quantize with group_size 16",
    )]  # fmt: skip


def test_groups_out_of_order(tmp_path: Path) -> None:
    given = inputs(packed(tmp_path / "model", integers(4, 32, True), format=GPTQ))
    quantization = {**(given.checkpoint.quantization or {}), "desc_act": True}
    given = replace(given, checkpoint=replace(given.checkpoint, quantization=quantization))
    assert said(given, tmp_path) == [(
        "R478",
        "`model` is quantized with `desc_act`: its groups are not in the order of its columns",
        "quantize the dense model with `quantize.gptq`, whose `act_order` keeps groups in order",
    )]  # fmt: skip


def test_fused_operators_for_tensorrt(tmp_path: Path) -> None:
    given = inputs(save(tmp_path / "model"))
    assert said(given, tmp_path, operators="fused", target="tensorrt") == [(
        "R865", "`operators` is fused; TensorRT does not know onnxruntime's operators",
        "leave it out, or use `target: onnxruntime`",
    )]  # fmt: skip
    assert said(given, tmp_path, target="tensorrt") == said(given, tmp_path, operators="standard") == []


def test_fused_operators_on_a_gpu(tmp_path: Path) -> None:
    given = inputs(save(tmp_path / "model"))
    for operators, codes in (("auto", ["R866"]), ("standard", [])):
        host = Host(tmp_path / "host", KIND, tmp_path, operators=operators)
        made = find(KIND).outcome(host.params, given)
        assert [d.code for d in preflight.unrunnable(made, "cuda")] == codes
        assert preflight.unrunnable(made, "cpu") == []


def test_files_for_browsers(tmp_path: Path) -> None:
    dense = facts(save(tmp_path / "dense"), "model")
    four, eight = (facts(packed(tmp_path / str(bits), integers(bits, 32, True)), "model") for bits in (4, 8))
    found = [web.file(web.dtype(each, how)) for each in (dense, four, eight) for how in ("fp32", "fp16")]
    names = ("", "_fp16", "_q4", "_q4f16", "_int8", "_fp16")
    assert found == [f"onnx/model{name}.onnx" for name in names]


def test_a_table_that_browsers_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PIECE", 10_000)
    given = inputs(save(tmp_path / "model", "llama_tied", vocab_size=128, hidden_size=64))
    warning = (
        "`embedding` is int4; tables of 4 bits cost some models more than layers do (SmolLM2-135M: 19 % of perplexity)"
    )
    remedy = "name a calibration text with `data`, by which that model loses 3 %, or use `embedding: int8`"
    assert said(given, tmp_path, target="web", embedding="int4") == [("R873", warning, remedy)]
    assert said(given, tmp_path, target="web") == [(
        "R867", "`model.embed_tokens.weight` takes 0.0 GB; browsers hold less than 2 GB in one piece",
        "use `embedding: int4` and `precision: fp16`",
    )]  # fmt: skip


@pytest.mark.nightly
def test_a_graph_for_browsers_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PIECE", 20_000)
    source = packed(tmp_path / "model", integers(4, 32, True), num_hidden_layers=2)
    engine = build(tmp_path, source, target="web", embedding="int4")
    data = sorted(path.name for path in (engine / "onnx").glob("*data*"))
    assert data[:2] == ["model_q4.onnx_data", "model_q4.onnx_data_1"]
    assert all(path.stat().st_size <= 20_000 for path in (engine / "onnx").glob("*data*"))
    config = json.loads((engine / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "q4", "use_external_data_format": len(data)}
    whole = build(tmp_path / "whole", source, embedding="int4")
    ids = prompts(2, 9)
    assert np.array_equal(OnnxRuntime(engine, threads=1).prefill(ids), OnnxRuntime(whole, threads=1).prefill(ids))


def test_tables_are_integers_where_layers_are(tmp_path: Path) -> None:
    four = facts(packed(tmp_path / "four", integers(4, 32, True)), "model")
    dense = facts(save(tmp_path / "dense"), "model")
    narrow = replace(four, tensors={
        name: replace(tensor, shape=(tensor.shape[0], 24)) if "embed_tokens" in name else tensor
        for name, tensor in four.tensors.items()
    })  # fmt: skip
    cases: list[tuple[CheckpointFacts, str, str, str]] = [
        (four, "onnxruntime", "auto", "int8"), (four, "web", "auto", "int8"), (four, "tensorrt", "auto", "dense"),
        (dense, "onnxruntime", "auto", "dense"), (narrow, "onnxruntime", "auto", "dense"),
        (four, "onnxruntime", "dense", "dense"), (dense, "onnxruntime", "int4", "int4"),
    ]  # fmt: skip
    for given, target, asked, chosen in cases:
        assert preflight.embedding(given, {"target": target, "embedding": asked}) == chosen


def test_the_folder_and_the_forecast(tmp_path: Path) -> None:
    source = packed(tmp_path / "model", integers(3, 32, True))
    (source / "compression.json").write_text("{}")
    (source / "tokenizer.json").write_text("{}")
    host = Host(tmp_path, KIND, source)
    given = inputs(source)
    result = find(KIND).run(host)
    out = host.out_dir
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "README.md", "config.json", "engine.json", "genai_config.json", "onnx/model.onnx", "onnx/model.onnx_data",
        "tokenizer.json",
    ]  # fmt: skip
    assert json.loads((out / "config.json").read_text())["transformers.js_config"] == {
        "dtype": "fp32", "use_external_data_format": 1,
    }  # fmt: skip
    engine = json.loads((out / "engine.json").read_text())
    cache = ["batch_size", 2, "past_sequence_length", 16]
    assert engine.pop("inputs") == [
        {"name": "input_ids", "dtype": "int64", "shape": ["batch_size", "sequence_length"]},
        {"name": "attention_mask", "dtype": "int64", "shape": ["batch_size", "total_sequence_length"]},
        {"name": "position_ids", "dtype": "int64", "shape": ["batch_size", "sequence_length"]},
        *(
            {"name": f"past_key_values.{layer}.{part}", "dtype": "float32", "shape": cache}
            for layer in range(2)
            for part in ("key", "value")
        ),
    ]
    assert engine.pop("outputs")[0] == {
        "name": "logits",
        "dtype": "float32",
        "shape": ["batch_size", "sequence_length", 96],
    }
    assert engine == {
        "format": "onnx", "target": "onnxruntime", "precision": "fp32", "embedding": "int8", "operators": "fused",
        "past_present_share_buffer": True, "file": "onnx/model.onnx", "opset": 21,
        "versions": {name: version(name) for name in ("onnx", "onnxscript", "torch", "transformers")},
        "source": {"digest": "0" * 64}, "context": 64, "vocabulary": 96, "max_batch": None, "layers": 2, "kv_heads": 2,
        "head_dim": 16, "stored": {"3-bit, symmetric, groups of 32": 14},
        "carried": {"3-bit integers in fields of 4 bits": 14},
    }  # fmt: skip
    forecast = find(KIND).outcome(host.params, given).engine
    assert forecast is not None
    assert {key: engine[key] for key in forecast} == forecast
    written = sum((out / name).stat().st_size for name in ("onnx/model.onnx", "onnx/model.onnx_data"))
    assert result.details["bytes"] == written
    assert find(KIND).estimate(host.params, given).disk == pytest.approx(
        (out / "onnx/model.onnx_data").stat().st_size, rel=0.05
    )
    page = (out / "README.md").read_text()
    assert (
        "- 14 linear modules: 3-bit, symmetric, groups of 32.\n- Of these, 14: 3-bit integers in fields of 4 bits"
        in page
    )


@pytest.mark.nightly
def test_the_page_runs(tmp_path: Path) -> None:
    """The Python of README.md, in the folder it is of."""
    source = save(tmp_path / "model", num_hidden_layers=1)
    host = Host(tmp_path, KIND, source)
    find(KIND).run(host)
    text = (host.out_dir / "README.md").read_text()
    code = (
        text.split("```python\n")[1]
        .split("```")[0]
        .replace('"onnx/model.onnx"', f'"{host.out_dir / "onnx/model.onnx"}"')
    )
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 3, 96)


def test_the_embedded_model(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(MODEL, source)
    given = Inputs(facts(source, "model"), {}, {}, machine_facts())
    assert said(given, tmp_path, target="tensorrt") == []
    host = Host(tmp_path, KIND, source)
    assert find(KIND).estimate(host.params, given).disk == pytest.approx(23_070_000, rel=0.01)

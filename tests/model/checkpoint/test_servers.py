"""The table of servers: what was tried with vLLM's CPU build, what its documents say, and what nobody knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from runner.model.architecture.inspect import facts
from runner.model.checkpoint import formats, loading, servers
from runner.model.checkpoint.quantization.cache_scheme import CacheScheme
from runner.model.checkpoint.quantization.presets import PRESETS, resolve
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from runner.model.checkpoint.servers import CPU, GPUS, verdict
from runner.plan.resolve_inputs import described
from tests import model_types, tiny
from tests.sweep import run

W4, W8 = integers(4, 64, True), integers(8, "channel", True)


@pytest.mark.parametrize(("format", "scheme", "gpu", "how"), [
    ("pack-quantized", W4, "cpu", "native"), ("pack-quantized", integers(4, 32, False), "cpu", "native"),
    ("pack-quantized", W8, "cpu", "refused"), ("pack-quantized", integers(3, 64, True), "cpu", "refused"),
    ("gptq", W4, "cpu", "native"), ("gptq", W8, "cpu", "refused"), ("gptq", integers(4, 64, False), "cpu", "refused"),
    ("gptq", integers(4, 64, False), "h100", "refused"), ("gptq", W8, "h100", "native"),
    ("pack-quantized", integers(8, 64, False), "h100", "refused"),
    ("pack-quantized", integers(4, "tensor", True), "h100", "refused"),
    ("float-quantized", PRESETS["fp8"], "h100", "native"), ("float-quantized", PRESETS["fp8"], "l4", "native"),
    ("float-quantized", PRESETS["fp8"], "a100", "fallback"), ("float-quantized", PRESETS["fp8"], "cpu", "native"),
    ("int-quantized", PRESETS["w8a8"], "cpu", "native"), ("int-quantized", PRESETS["w8a8"], "t4", "native"),
    ("int-quantized", W8, "h100", "refused"), ("int-quantized", PRESETS["w8a8"], "b200", "unknown"),
    ("int-quantized", resolve("w8a8", 8, "channel", False), "h100", "refused"),
    ("mxfp8-quantized", PRESETS["fp8"], "h100", "unknown"),
    ("mxfp8-quantized", PRESETS["mxfp8"], "cpu", "refused"),
    ("nvfp4-pack-quantized", PRESETS["nvfp4a16"], "cpu", "refused"),
    ("bitsandbytes", PRESETS["nf4"], "h100", "refused"), ("pack-quantized", PRESETS["log2"].stored, "cpu", "refused"),
    ("pack-quantized", PRESETS["log2"].stored, "a100", "native"),
])  # fmt: skip
def test_vllm(format: str, scheme: Scheme, gpu: str, how: str) -> None:
    assert verdict("vllm", format, [scheme], GPUS[gpu]).how == how


@pytest.mark.parametrize(("format", "scheme", "gpu", "how"), [
    ("modelopt", PRESETS["nvfp4"], "b200", "native"), ("modelopt", PRESETS["nvfp4"], "rtx5090", "native"),
    ("modelopt", PRESETS["nvfp4"], "h100", "refused"), ("modelopt", PRESETS["fp8"], "h100", "native"),
    ("modelopt", PRESETS["fp8"], "l4", "refused"), ("modelopt", PRESETS["fp8"], "b200", "refused"),
    ("nvfp4-pack-quantized", PRESETS["nvfp4"], "b200", "unknown"), ("tensorrt", PRESETS["nvfp4"], "b200", "refused"),
])  # fmt: skip
def test_tensorrt_llm(format: str, scheme: Scheme, gpu: str, how: str) -> None:
    """The checkpoints of NVIDIA's Model Optimizer, by the table of its documentation; no engine of this project."""
    assert verdict("tensorrt-llm", format, [scheme], GPUS[gpu]).how == how


def test_the_worst_scheme_of_a_checkpoint_counts() -> None:
    found = verdict("vllm", "pack-quantized", [W4, W8], CPU)
    assert found.describe() == "vllm cannot load it: its CPU build has no kernels for 8-bit weights"


def test_without_a_device_the_best_gpu_counts() -> None:
    assert verdict("vllm", "float-quantized", [PRESETS["fp8"]]).how == "native"
    assert verdict("vllm", "gptq", [integers(4, 64, False)]).how == "refused"


def test_caches_of_integers() -> None:
    assert verdict("vllm", "dense", [], 9.0, CacheScheme("float8_e4m3")).how == "native"
    assert verdict("vllm", "dense", [], 9.0, CacheScheme("int8")).why == (
        "it would take the scales of an int8 cache for those of fp8"
    )


@pytest.mark.parametrize(("version", "covered"), [
    ("any", True), ("0.32", True), (">=0.30", True), ("0.9", False), (">=0.9.2", False), ("1", True),
])  # fmt: skip
def test_versions(version: str, covered: bool) -> None:
    assert servers.is_covered("vllm", version) == covered


def test_rows_name_servers_formats_and_sources() -> None:
    known = {servers.DENSE, "onnx", "gguf", "tensorrt", "aotinductor", "executorch"}
    known |= {format.NAME for format in formats.all_formats()}
    for row in servers.ROWS:
        assert row.server in servers.SERVERS
        assert set(row.formats) <= known, row
        assert row.how in servers.HOW
        assert row.source
        assert bool(row.why) or row.how == servers.NATIVE, row


def test_no_row_is_hidden_by_another() -> None:
    schemes = [*PRESETS.values(), resolve("w8a8", 8, "channel", False)]
    schemes += [integers(b, g, s) for b in range(2, 9) for g in (64, "channel", "tensor") for s in (True, False)]
    schemes += [replace(each, activations=None) for each in schemes]
    asked = [(format, scheme, gpu, model) for row in servers.ROWS for format in row.formats
             for scheme in (None, *schemes) for gpu in GPUS.values()
             for model in ("", *(row.models or ()))]  # fmt: skip
    used: set[int] = set()
    for server in servers.SERVERS:
        rows = [(index, row) for index, row in enumerate(servers.ROWS) if row.server == server]
        for each in dict.fromkeys(asked):
            used.update([index for index, row in rows if row.matches(*each)][:1])
    assert used == set(range(len(servers.ROWS)))


@pytest.mark.parametrize(
    ("name", "changes", "how"),
    [
        ("llama", {}, servers.FALLBACK), ("qwen3", {}, servers.REFUSED),
        ("llama", {"attention_bias": True}, servers.REFUSED),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, servers.REFUSED),
    ],
)  # fmt: skip
def test_gguf_files_that_transformers_reads_as_they_are(
    tmp_path: Path, name: str, changes: dict[str, Any], how: str
) -> None:
    """docs/gguf.md says which it takes for another model without an error."""
    checkpoint = replace(facts(tiny.save(tmp_path, name, **changes), "demo"), engine={"format": "gguf"})
    assert loading.verdict("transformers", checkpoint, servers.CPU).how == how
    assert loading.verdict("llama.cpp", checkpoint, servers.CPU).how == servers.NATIVE


def test_modules_that_a_server_cannot_load_packed() -> None:
    """vLLM's mixer of Mamba and its joined projections of the indexer take no scheme; of Bloom it orders rows anew."""
    found = servers.held_unpacked("vllm", "jamba", "gptq", ["model.layers.0.mamba.in_proj", "model.layers.1.mlp.up"])
    assert found is not None
    assert found.describe() == (
        "vllm cannot load it: it holds `*.mamba.*` of jamba unpacked whatever a checkpoint says; name them in `ignore`"
    )
    rows = servers.held_unpacked("vllm", "bloom", "gptq", ["transformer.h.0.self_attention.query_key_value"])
    assert rows is not None
    assert rows.why == (
        "it orders the rows of `*.query_key_value` of bloom anew as if they were not packed; name them in `ignore`"
    )


@pytest.mark.parametrize(("server", "model", "format", "module", "refused"), [
    ("vllm", "deepseek_v32", "fp8", "layers.0.self_attn.indexer.weights_proj", True),
    ("vllm", "deepseek_v32", "fp8", "layers.0.self_attn.indexer.wq_b", False),
    ("vllm", "bloom", "int-quantized", "h.0.self_attention.query_key_value", False),
    ("vllm", "jamba", "gptq", "layers.1.mlp.up_proj", False),
    ("vllm", "bamba", "gptq", "layers.0.mamba.in_proj", False),
    ("transformers", "jamba", "gptq", "layers.0.mamba.in_proj", False),
])  # fmt: skip
def test_modules_that_stay_unpacked(server: str, model: str, format: str, module: str, refused: bool) -> None:
    assert (servers.held_unpacked(server, model, format, [module]) is not None) is refused


@pytest.mark.parametrize(("ignore", "how"), [(["lm_head"], "refused"), (["lm_head", "*.mamba.*"], "native")])
def test_a_checkpoint_whose_modules_are_held_unpacked(tmp_path: Path, ignore: list[str], how: str) -> None:
    config = model_types.config("jamba")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    run("quantize.rtn", tmp_path / "model", tmp_path / "step", None, bits=4, group_size=8, ignore=ignore)
    found = loading.verdict("vllm", described(facts(tmp_path / "step" / "out", "demo"), tmp_path / "step" / "out"), 9.0)
    assert found.how == how

"""Graphs that onnxruntime runs against transformers in float32: every architecture, every way of storing weights."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from runner.model.checkpoint import adapter_config, adapter_writer
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from runner.model.checkpoint.reader import CheckpointReader
from runner.runtime.greedy import greedy
from runner.runtime.transformers import Transformers
from runner.steps.kinds import find
from tests.export.exported import LONG, build, packed, pair, prompts
from tests.host import Host
from tests.model.packed import GPTQ
from tests.tiny import save

TOLERANCE = 1e-4  # of logits around 3; the promise is 1e-3
TWO = LONG | {"num_hidden_layers": 2}  # the time of an export is that of its layers
ONE: dict[str, Any] = {"num_hidden_layers": 1}
MODELS: dict[str, dict[str, Any]] = {
    "llama": TWO, "llama_tied": TWO, "qwen2": TWO, "qwen3": TWO, "mistral": TWO, "gemma2": TWO,
    "gemma3_text": LONG, "gemma": TWO | {"model_type": "gemma", "head_dim": 8}, "phi3": TWO, "opt": TWO,
    "gpt_neox": TWO, "gpt2": {"n_positions": 128, "n_layer": 2},
}  # fmt: skip


# Each takes ten seconds of two cores: the others are compared nightly.
SHORT = ("llama",)


def checkpoint(folder: Path, name: str) -> Path:
    return save(folder, "llama_tied" if name == "gemma" else name, **MODELS[name])


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.nightly) for name in MODELS]
)
def test_an_architecture(name: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model", name)
    ours, theirs = pair(build(tmp_path, source), source)
    for batch, length in ((1, 1), (2, 7), (3, 33), (4, 128)):
        ids = prompts(batch, length)
        whole = theirs.prefill(ids)
        assert np.abs(ours.prefill(ids) - whole).max() < TOLERANCE
        if length == 33:  # the same, the last tokens one by one
            ours.prefill(ids[:, :20])
            steps = [ours.decode(ids[:, i : i + 1]) for i in range(20, 33)]
            assert np.abs(np.concatenate(steps, 1) - whole[:, 20:]).max() < TOLERANCE
    for seed in range(3):
        ids = prompts(2, 5 + 10 * seed, seed)
        assert greedy(ours, ids, 64) == greedy(theirs, ids, 64)


@pytest.mark.nightly
def test_standard_operators(tmp_path: Path) -> None:
    """Graphs of ONNX's own operators also continue several sequences by several tokens at once."""
    source = checkpoint(tmp_path / "model", "gemma2")
    ours, theirs = pair(build(tmp_path, source, operators="standard"), source)
    ids = prompts(2, 33)
    ours.prefill(ids[:, :20])
    assert np.abs(ours.decode(ids[:, 20:]) - theirs.prefill(ids)[:, 20:]).max() < TOLERANCE


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt_neox"])
def test_what_is_fused(name: str, tmp_path: Path) -> None:
    graph = onnx.load(build(tmp_path, checkpoint(tmp_path / "model", name)) / "onnx/model.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["GroupQueryAttention"] == 2
    assert kinds["RotaryEmbedding"] == 4
    assert kinds["Softmax"] == kinds["Neg"] == 0
    if name != "gpt_neox":  # whose norms subtract the mean
        assert kinds["SkipSimplifiedLayerNormalization"] == 4
        assert kinds["ReduceMean"] == 0


# A graph with every way of packing is in test_demo.py.
@pytest.mark.parametrize(("scheme", "target"), [
    (integers(4, 32, False), "onnxruntime"),
    *(pytest.param(scheme, target, marks=pytest.mark.nightly) for scheme, target in (
        (integers(8, "channel", True), "tensorrt"),
        (integers(4, 32, True), "onnxruntime"), (integers(3, 32, True), "onnxruntime"),
        (integers(8, "channel", True), "onnxruntime"), (integers(8, 32, False), "onnxruntime"),
        (integers(4, 32, True), "tensorrt"),
    )),
], ids=str)  # fmt: skip
def test_packed_weights(scheme: Scheme, target: str, tmp_path: Path) -> None:
    source = packed(tmp_path / "model", scheme, **TWO)
    engine = build(tmp_path, source, target=target)
    ours, theirs = pair(engine, source)
    ids = prompts(3, 40)
    assert np.abs(ours.prefill(ids) - theirs.prefill(ids)).max() < TOLERANCE
    assert greedy(ours, ids, 64) == greedy(theirs, ids, 64)
    kinds = {node.op_type for node in onnx.load(engine / "onnx/model.onnx", load_external_data=False).graph.node}
    assert ("MatMulNBits" in kinds, "DequantizeLinear" in kinds) == (target == "onnxruntime", target == "tensorrt")


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_products_of_integers(precision: str, tmp_path: Path) -> None:
    """A `w8a8` checkpoint computes as its scheme says, simulated in torch.

    The largest value of a token lies between two integers there (127.5 steps), so that the last bit of a sum decides
    it: logits are equal where no such value fell to the other side, and elsewhere within the error of the scheme.
    """
    dense = save(tmp_path / "dense", "qwen2", **TWO)
    host = Host(tmp_path / "host", "quantize.rtn", dense, scheme="w8a8", bits=8, format="int-quantized")
    find("quantize.rtn").run(host)
    engine = build(tmp_path, host.out_dir, precision=precision)
    ours, theirs = pair(engine, host.out_dir)
    ids = prompts(3, 40)
    wanted = theirs.prefill(ids)
    gap = np.abs(ours.prefill(ids) - wanted).max(-1)
    scheme = np.abs(wanted - Transformers(dense, dtype=torch.float32).prefill(ids)).max(-1)
    assert gap.max() < scheme.max()
    assert gap.mean() < scheme.mean() / 4
    if precision == "fp32":
        assert np.median(gap) < TOLERANCE
    ours.prefill(ids[:, :39])
    assert np.abs(ours.decode(ids[:, 39:]) - wanted[:, 39:]).max() < scheme.max()
    nodes = onnx.load(engine / "onnx/model.onnx", load_external_data=False).graph.node
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["MatMulInteger"] == 14
    assert kinds["QuantizeLinear"] == 8, "q, k and v share their rounded inputs, and so do gate and up"
    assert "session.x64quantprecision" in (engine / "README.md").read_text()


@pytest.mark.nightly
def test_a_token_of_zeros_is_rounded_to_zeros(tmp_path: Path) -> None:
    dense = save(tmp_path / "dense", **ONE)
    tensors = load_file(dense / "model.safetensors")
    tensors["model.embed_tokens.weight"][5] = 0
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    host = Host(tmp_path / "host", "quantize.rtn", dense, scheme="w8a8", bits=8, format="int-quantized")
    find("quantize.rtn").run(host)
    ours, theirs = pair(build(tmp_path, host.out_dir), host.out_dir)
    ids = np.array([[5]])
    assert np.array_equal(theirs.prefill(ids), np.zeros((1, 1, 96), np.float32))
    assert np.array_equal(ours.prefill(ids), np.zeros((1, 1, 96), np.float32))


@pytest.mark.nightly
def test_packed_modules_of_gpt2(tmp_path: Path) -> None:
    source = packed(tmp_path / "model", integers(4, 32, True), "gpt2", GPTQ, n_layer=1)
    ours, theirs = pair(build(tmp_path, source), source)
    ids = prompts(2, 30)
    assert np.abs(ours.prefill(ids) - theirs.prefill(ids)).max() < TOLERANCE


@pytest.mark.nightly
def test_the_integers_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    source = packed(tmp_path / "model", integers(4, 32, False), **ONE)
    model = onnx.load(build(tmp_path, source) / "onnx/model.onnx")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    with CheckpointReader(source) as reader:
        for name in ("model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"):
            q = reader.read_quantized(name)
            data = torch.from_numpy(held[f"{name}.weight"].copy())
            assert torch.equal(torch.stack([data & 15, data >> 4], -1).reshape(q.integers.shape), q.integers)
            assert torch.equal(torch.from_numpy(held[f"{name}.scales"].copy()).view(q.scale.shape), q.scale.float())


@pytest.mark.nightly
@pytest.mark.parametrize("scheme", [None, integers(4, 32, True)], ids=["dense", "packed"])
def test_an_adapter_stays_a_branch(scheme: Scheme | None, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    source = tmp_path / "model"
    if scheme is None:
        save(source, **sizes)
    else:
        packed(source, scheme)
    generator = torch.Generator().manual_seed(3)
    module = "model.layers.1.mlp.down_proj"
    tensors = {
        f"{module}.lora_A.weight": torch.randn(2, 96, generator=generator),
        f"{module}.lora_B.weight": torch.randn(64, 2, generator=generator),
    }
    adapter_writer.write(source, adapter_config.config(2, 4, [module], rslora=True), tensors)
    engine = build(tmp_path, source)
    ours, theirs = pair(engine, source)
    ids = prompts(2, 12)
    wanted = theirs.prefill(ids)
    assert np.abs(ours.prefill(ids) - wanted).max() < TOLERANCE
    names = {
        tensor.name for tensor in onnx.load(engine / "onnx/model.onnx", load_external_data=False).graph.initializer
    }
    assert {f"{module}.lora_A", f"{module}.lora_B", f"{module}.weight"} <= names


@pytest.mark.nightly
def test_padding_on_the_left_changes_nothing(tmp_path: Path) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    source = save(tmp_path / "model", "mistral", **ONE)
    engine = build(tmp_path, source)
    session = onnxruntime.InferenceSession(str(engine / "onnx/model.onnx"))
    ids = prompts(1, 10)
    past = {value.name: np.zeros((1, 2, 0, 8), np.float32) for value in session.get_inputs()[3:]}

    def run(ids: Any, mask: Any, positions: Any) -> Any:
        return session.run(["logits"], {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past})[0]

    plain = run(ids, np.ones_like(ids), np.arange(10)[None])
    padded = np.concatenate([np.zeros((1, 4), np.int64), ids], 1)
    mask = (np.arange(14) >= 4).astype(np.int64)[None]
    found = run(padded, mask, np.maximum(np.arange(14) - 4, 0)[None])
    assert np.isfinite(found).all()
    assert np.abs(found[:, 4:] - plain).max() < TOLERANCE


@pytest.mark.nightly
def test_half_precision(tmp_path: Path) -> None:
    source = packed(tmp_path / "model", integers(4, 32, True), **ONE)
    engine = build(tmp_path, source, precision="fp16")
    ours, theirs = pair(engine, source)
    ids = prompts(2, 12)
    found = ours.prefill(ids)
    assert found.dtype == np.float32
    assert np.abs(found - theirs.prefill(ids)).max() < 0.05


@pytest.mark.nightly
def test_a_tied_embedding_is_written_once_and_equal_checkpoints_give_equal_bytes(tmp_path: Path) -> None:
    source = save(tmp_path / "model", "llama_tied", vocab_size=4096, **ONE)
    one, two = (build(tmp_path / name, source) for name in "ab")
    for name in ("onnx/model.onnx", "onnx/model.onnx_data", "engine.json", "README.md"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    text = (one / "onnx/model.onnx").read_bytes()
    assert b"stack" not in text
    assert b".py" not in text
    weights = (source / "model.safetensors").stat().st_size  # float32
    assert (one / "onnx/model.onnx_data").stat().st_size < 1.1 * weights


@pytest.mark.nightly
def test_one_weight_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the checkpoint: when a weight is read, those before it are gone."""
    source = save(tmp_path / "model", **ONE)
    read = CheckpointReader.read_weight
    given: list[weakref.ref[torch.Tensor]] = []

    def watched(self: CheckpointReader, name: str) -> torch.Tensor:
        gc.collect()
        assert not [reference for reference in given if reference() is not None], name
        weight = read(self, name)
        given.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(CheckpointReader, "read_weight", watched)
    gc.freeze()  # what was there before is not looked through each time
    try:
        build(tmp_path, source)
    finally:
        gc.unfreeze()
    assert len(given) == 7 + 2

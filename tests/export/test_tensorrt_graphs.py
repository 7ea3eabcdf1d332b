"""Graphs for TensorRT of whole checkpoints, run by ONNX's own evaluator, against what evaluations compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from runner.contracts.step_kind import MachineFacts
from runner.errors import MachineError
from runner.export import preflight
from runner.export.external_data import DataFile
from runner.export.trace import DOMAIN
from runner.export.weights import Filler, Options
from runner.model.architecture import inspect
from runner.model.layerwise.activation_rounding import round_inputs
from runner.model.layerwise.streamed_model import StreamedModel
from runner.runtime import open
from runner.runtime.transformers import Transformers
from runner.steps import kinds
from tests import tiny
from tests.export import reference
from tests.export.exported import build, prompts
from tests.host import Host

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}
SCHEMES: dict[str, dict[str, Any]] = {
    "nvfp4": {"scheme": "nvfp4", "format": "nvfp4-pack-quantized"},
    "nvfp4a16": {"scheme": "nvfp4a16", "format": "nvfp4-pack-quantized"},
    "modelopt nvfp4": {"scheme": "nvfp4", "format": "modelopt"},
    "modelopt fp8": {"scheme": "fp8", "bits": 8, "format": "modelopt"},
    "fp8": {"scheme": "fp8", "bits": 8, "format": "float-quantized"},
    "static fp8": {"scheme": "fp8", "bits": 8, "format": "float-quantized", "activations": "static"},
    "w8a8": {"scheme": "w8a8", "bits": 8, "group_size": "channel", "format": "int-quantized"},
    "static w8a8": {
        "scheme": "w8a8", "bits": 8, "group_size": "channel", "format": "int-quantized", "activations": "static",
    },
}  # fmt: skip
CALIBRATED = ("nvfp4", "modelopt nvfp4", "static fp8", "static w8a8")
_FIRST = "model.layers.0.mlp.down_proj"
TOLERANCE = 1e-4  # of logits around 3


def quantized(folder: Path, name: str, layers: int = 1) -> tuple[Path, Path]:
    """A dense checkpoint, and the same one quantized."""
    dense = tiny.save(folder / "dense", "llama", torch.bfloat16, **SIZES, num_hidden_layers=layers)
    ids = tiny.tokens(8, 64) if name in CALIBRATED else None
    host = Host(folder / "quantized", "quantize.rtn", dense, ids, **SCHEMES[name])
    kinds.find("quantize.rtn").run(host)
    return dense, host.out_dir


def simulated(checkpoint: Path, ids: Any, dtype: torch.dtype = torch.float32) -> Any:
    return Transformers(checkpoint, dtype=dtype, exact=True).prefill(ids).astype(np.float32)


@pytest.mark.nightly
@pytest.mark.parametrize("name", SCHEMES)
def test_a_graph_computes_what_evaluations_of_its_checkpoint_compute(name: str, tmp_path: Path) -> None:
    """Up to inputs that lie between two levels, which the last bit of a float32 sends to the other one.

    The largest value of a token is such an input where INT8 has a scale for each token: 127.5 steps.
    """
    dense, checkpoint = quantized(tmp_path, name, 2)
    engine = build(tmp_path, checkpoint, target="tensorrt")
    ids = prompts(3, 40)
    wanted = simulated(checkpoint, ids)
    gap = np.abs(reference.logits(engine / "onnx/model.onnx", ids) - wanted).max(-1)
    scheme = np.abs(wanted - simulated(dense, ids)).max(-1)
    assert np.median(gap) < TOLERANCE < np.median(scheme)
    assert gap.mean() < scheme.mean() / (4 if name == "w8a8" else 10)
    if "nvfp4" not in name:
        runtime = open.open(engine, threads=1)
        gap = np.abs(runtime.prefill(ids) - wanted).max(-1)
        assert np.median(gap) < TOLERANCE
        assert gap.mean() < scheme.mean() / (4 if name == "w8a8" else 10)


@pytest.mark.parametrize("name", ["nvfp4", "static fp8"])
def test_a_placeholder_becomes_the_product_of_its_module(name: str, tmp_path: Path) -> None:
    """A graph of one linear module, as tracing leaves it."""
    _, checkpoint = quantized(tmp_path, name)
    x = ir.Value(name="x", shape=ir.Shape(["n", 96]), type=ir.TensorType(ir.DataType.FLOAT))
    traced = ir.node("Linear", [x], {"module": _FIRST}, domain=DOMAIN, name="traced")
    y = traced.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 64])
    graph = ir.Graph([x], [y], nodes=[traced], opset_imports={"": 23, "trt": 1}, name="one")
    streamed = StreamedModel(checkpoint, "cpu", torch.float32)
    with DataFile(tmp_path / "data") as data:
        filler = Filler(graph, streamed, data, Options("tensorrt", torch.float32, 1))
        filler.fill(lambda done, total: None)
    for number, value in enumerate(value for node in graph for value in node.outputs):
        value.name = value.name or str(number)
    out = graph.outputs[0]
    out.name, out.type, out.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 64])
    ir.save(ir.Model(graph, ir_version=11), str(tmp_path / "model.onnx"))
    q, scheme = streamed.reader.read_quantized(_FIRST), streamed.scheme(_FIRST)
    assert scheme is not None
    assert scheme.activations is not None
    assert filler.stored == {scheme.describe(): 1}
    given = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    weight = replace(q, scale=q.scale.float()).dequantize(torch.float32)
    wanted = (round_inputs(given, scheme.activations, q.input_scale) @ weight.T).numpy()
    found = reference.run(tmp_path / "model.onnx", {"x": given.numpy()})
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_only_tensorrt_runs_a_graph_of_4_bit_floats(tmp_path: Path) -> None:
    _, checkpoint = quantized(tmp_path, "nvfp4a16")
    facts, engine = inspect.facts(checkpoint, "model"), tmp_path / "engine"
    described = dict(preflight.engine(facts, "tensorrt", "fp32"))
    engine.mkdir()
    (engine / "engine.json").write_text(json.dumps(described))
    (refused,) = preflight.unrunnable(replace(facts, engine=described), "cpu")
    assert refused.render() == (
        "error[R456]: onnxruntime has no 4-bit floats; the graph is one for TensorRT alone\n"
        "help: measure the checkpoint, of which evaluations round inputs as the graph does, or the engine on a GPU"
    )
    with pytest.raises(MachineError) as caught:
        open.open(engine)
    assert caught.value.render() == (
        f"error: the graph in `{engine}` has weights in 4-bit floats, which onnxruntime does not know\n"
        "help: build an engine of it with `build.tensorrt`"
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", SCHEMES)
def test_in_half_precision_the_graph_is_as_near_as_the_checkpoint_itself(name: str, tmp_path: Path) -> None:
    """To the checkpoint in float32: inputs near the middle of two levels fall to either side in both."""
    _, checkpoint = quantized(tmp_path, name, 2)
    engine = build(tmp_path, checkpoint, target="tensorrt", precision="fp16")
    ids = prompts(3, 40)
    wanted, half = simulated(checkpoint, ids), simulated(checkpoint, ids, torch.float16)
    found = reference.logits(engine / "onnx/model.onnx", ids)
    assert np.abs(found - wanted).mean() < 1.25 * np.abs(half - wanted).mean()


@pytest.mark.nightly
@pytest.mark.parametrize("name", SCHEMES)
def test_files_hold_the_checkpoints_bytes(name: str, tmp_path: Path) -> None:
    _, checkpoint = quantized(tmp_path, name)
    engine = build(tmp_path, checkpoint, target="tensorrt")
    model = onnx.load(str(engine / "onnx/model.onnx"))
    held = {tensor.name: tensor.raw_data for tensor in model.graph.initializer}
    stored = load_file(checkpoint / "model.safetensors")
    packed = "weight_packed" if f"{_FIRST}.weight_packed" in stored else "weight"
    for module in (_FIRST, "model.layers.0.self_attn.o_proj"):
        assert held[f"{module}.weight"] == stored[f"{module}.{packed}"].view(torch.uint8).numpy().tobytes()
        if "nvfp4" in name:
            assert held[f"{module}.scales"] == stored[f"{module}.weight_scale"].view(torch.uint8).numpy().tobytes()
    opset = {each.domain: each.version for each in model.opset_import}[""]
    last = "has no 4-bit floats" if "nvfp4" in name else "runs it too"
    assert f"onnxruntime {last}." in (engine / "README.md").read_text()
    assert opset == (open.engine(engine) or {})["opset"] == (23 if "nvfp4" in name else 21)


def test_a_forecast_of_the_bytes(tmp_path: Path) -> None:
    from runner.contracts.step_kind import Inputs
    from runner.recipe.schema.load import defaults

    _, checkpoint = quantized(tmp_path, "nvfp4a16")
    facts = inspect.facts(checkpoint, "model")
    linears = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    rest = 2 * (2 * 96 * 64 + 3 * 64)
    assert 0 <= preflight.nbytes(facts, "tensorrt", "fp16") - (linears // 2 + linears // 16 + rest) < 64
    machine = MachineFacts(2, 8 << 30, 8 << 30, "cpu", 0, None, 1e11, 1e9)
    kind = kinds.find("build.onnx")
    params = defaults("build.onnx", {"target": "tensorrt", "precision": "fp16"})
    assert kind.check(params, Inputs(facts, {}, {}, machine)) == []

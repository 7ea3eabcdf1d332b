"""Products of quantized weights in graphs for TensorRT: a checkpoint's bytes, and what its scheme computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from runner.errors import StepFailed
from runner.export import tensorrt_weights
from runner.export.external_data import DataFile
from runner.export.graph_layouts import GraphLayout
from runner.export.nodes import Nodes
from runner.export.tensorrt_inputs import TENSORRT_DOMAIN, TensorrtInputs
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Numbers, Scheme, integers
from runner.model.layerwise.activation_rounding import round_inputs
from tests.export import reference

ROWS, COLUMNS = 24, 64
TYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}


def static(name: str) -> Scheme:
    preset = PRESETS[name]
    assert preset.activations is not None
    return replace(preset, activations=replace(preset.activations, layout="tensor"), dynamic=False)


SCHEMES = {
    "w8a8": PRESETS["w8a8"], "static w8a8": static("w8a8"), "fp8": PRESETS["fp8"], "static fp8": static("fp8"),
    "fp8 weights": Scheme(PRESETS["fp8"].weights), "fp8 by matrix": Scheme(Numbers("float8_e4m3", "tensor")),
    "nvfp4": PRESETS["nvfp4"], "nvfp4a16": PRESETS["nvfp4a16"],
}  # fmt: skip
HELD_BY = {"int8": "int-quantized", "float8_e4m3": "float-quantized", "float4_e2m1": "nvfp4-pack-quantized"}


def made(scheme: Scheme, scale: float = 2.0**-8) -> Quantized:
    generator = torch.Generator().manual_seed(3)
    numbers = scheme.weights
    codes = torch.randint(0, 2**numbers.bits, (ROWS, COLUMNS), generator=generator, dtype=torch.uint8)
    if numbers.element == "float8_e4m3":
        codes[(codes & 127) == 127] = 0  # no NaN
    shape = numbers.scale_shape(ROWS, COLUMNS)
    scales = (torch.rand(shape, generator=generator) + 0.5) * (64 if numbers.two_level else scale)
    return Quantized(
        codes, scales.to(torch.float8_e4m3fn if numbers.two_level else torch.bfloat16), None, numbers,
        global_scale=torch.tensor([3700.0]) if numbers.two_level else None,
        input_scale=torch.tensor([900.0 if numbers.two_level else 2.0**-6]) if scheme.calibrated else None,
    )  # fmt: skip


def graph(folder: Path, weights: list[tuple[Quantized, Scheme]], dtype: torch.dtype) -> Path:
    """Write the graph of x·Wᵀ for each weight; the results are concatenated."""
    x = ir.Value(name="x", shape=ir.Shape(["n", COLUMNS]), type=ir.TensorType(TYPES[dtype]))
    inputs, nodes, constants, outs = TensorrtInputs(dtype), list[ir.Node](), list[ir.Value](), list[ir.Value]()
    with DataFile(folder / "data") as data:
        for index, (q, scheme) in enumerate(weights):
            part = Nodes(f"m{index}")
            given, scales = x, None
            if scheme.activations is not None:
                given, scales = inputs.rounded(part, x, scheme.activations, q.input_scale)
            out = part.node("MatMul", [given, tensorrt_weights.as_stored(part, data, f"m{index}", q, dtype)])
            wide = out if dtype == torch.float32 else part.node("Cast", [out], {"to": int(ir.DataType.FLOAT)})
            outs.append(wide if scales is None else part.node("Mul", [wide, scales]))
            nodes += part.nodes
            constants += part.constants
    last = Nodes("last")
    y = last.node("Concat", outs, {"axis": 1})
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", ROWS * len(weights)])
    made = ir.Graph([x], [y], nodes=[*nodes, *last.nodes], initializers=constants,
                    opset_imports={"": 23, TENSORRT_DOMAIN: 1}, name="product")  # fmt: skip
    for number, node in enumerate(made):
        for place, value in enumerate(node.outputs):
            value.name = value.name or f"{number}:{place}"
    ir.save(ir.Model(made, ir_version=11), str(folder / "model.onnx"))
    onnx.checker.check_model(str(folder / "model.onnx"))
    return folder / "model.onnx"


def wanted(x: torch.Tensor, q: Quantized, scheme: Scheme) -> torch.Tensor:
    """What evaluations of the checkpoint compute, in float32 with the weight unrounded."""
    if scheme.activations is not None:
        x = round_inputs(x, scheme.activations, q.input_scale)
    return x @ replace(q, scale=q.scale.float()).dequantize(torch.float32).T


def given(rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SCHEMES)
def test_the_bytes_are_those_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    q = made(scheme)
    model = onnx.load(str(graph(tmp_path, [(q, scheme)], torch.float32)))
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    format = formats.find(HELD_BY[scheme.weights.element])
    stored = format.pack("m0", q, format.config({"m0": scheme}))
    weight = stored[f"m0.{format.WEIGHT}"]
    assert held["m0.weight"].raw_data == weight.contiguous().view(torch.uint8).numpy().tobytes()
    assert list(held["m0.weight"].dims) == [ROWS, COLUMNS]
    scales = torch.frombuffer(bytearray(held["m0.scales"].raw_data), dtype=torch.uint8)
    if scheme.weights.two_level:
        assert torch.equal(scales, stored["m0.weight_scale"].view(torch.uint8).reshape(-1))
    else:
        assert torch.equal(scales.view(torch.float32), stored["m0.weight_scale"].float().reshape(-1))


@pytest.mark.parametrize("name", ["w8a8", "fp8", "fp8 by matrix", "nvfp4a16"])
def test_the_dequantized_weight_is_the_one_that_is_read(name: str, tmp_path: Path) -> None:
    scheme = Scheme(SCHEMES[name].weights)
    q = made(scheme)
    found = reference.run(graph(tmp_path, [(q, scheme)], torch.float32), {"x": np.eye(COLUMNS, dtype=np.float32)})
    exact = replace(q, scale=q.scale.float()).dequantize(torch.float32).T.numpy()
    if scheme.weights.two_level:  # TensorRT multiplies by the reciprocal of what the checkpoint divides by
        assert np.abs(found / np.where(exact == 0, 1, exact) - (exact != 0)).max() < 2**-22
    else:
        assert np.array_equal(found, exact)
    assert torch.equal(torch.from_numpy(found.T.copy()).bfloat16(), q.dequantize(torch.bfloat16))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_product_is_that_of_the_scheme(name: str, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    q, x = made(scheme), given()
    x[2] = 0
    x[3] *= 50  # beyond what the calibrated scales cover: it saturates
    found = reference.run(graph(tmp_path, [(q, scheme)], torch.float32), {"x": x.numpy()})
    expected = wanted(x, q, scheme).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert (found[2] == 0).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_in_half_precision(name: str, tmp_path: Path) -> None:
    """Products stay within float16 even where the inputs of a token are large: they are at most 1 before them."""
    scheme = SCHEMES[name]
    q, x = made(scheme), given()
    x[3] *= 50
    found = reference.run(graph(tmp_path, [(q, scheme)], torch.float16), {"x": x.half().numpy()})
    expected = wanted(x.half().float(), q, scheme).numpy()
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def test_onnxruntime_computes_the_same(tmp_path: Path) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    weights = [(made(SCHEMES[name]), SCHEMES[name]) for name in SCHEMES if "nvfp4" not in name]
    path, x = graph(tmp_path, weights, torch.float32), given().numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = reference.run(path, {"x": x})
    assert np.abs(session.run(None, {"x": x})[0] - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("scale", [2.0**-8, 2.0**-19])
def test_scales_that_float16_does_not_hold_stay_in_float32(scale: float, tmp_path: Path) -> None:
    scheme = SCHEMES["static fp8"]
    q = replace(made(scheme, scale), input_scale=torch.tensor([scale * 1.4140625]))
    model = onnx.load(str(graph(tmp_path, [(q, scheme)], torch.float16)))
    held = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kind = onnx.TensorProto.FLOAT16 if scale == 2.0**-8 else onnx.TensorProto.FLOAT
    assert (held["m0.scales"], held["m0.input_scale"]) == (kind, kind)


def test_integers_in_groups_whose_scales_float16_does_not_hold(tmp_path: Path) -> None:
    """Of 4-bit integers too: 2^-19 times 0.5 to 1.5 in bfloat16 would lose bits in float16."""
    numbers = integers(4, 32, True).weights
    q = made(Scheme(numbers), 2.0**-19)
    part = Nodes("m0")
    with DataFile(tmp_path / "data") as data:
        weight = tensorrt_weights.as_integers(part, data, "m0", q, GraphLayout(4, 32), torch.float16)
    kinds = [node.op_type for node in part.nodes]
    assert kinds == ["DequantizeLinear", "Cast"]
    assert weight is part.nodes[-1].outputs[0]
    scales = part.constants[1]
    assert scales.dtype == ir.DataType.FLOAT
    assert scales.const_value is not None
    assert np.array_equal(scales.const_value.numpy(), q.scale.float().T.numpy())


@pytest.mark.parametrize("name", ["fp8", "nvfp4a16"])
def test_weights_that_float16_does_not_hold_are_refused(name: str) -> None:
    q = made(Scheme(SCHEMES[name].weights), 2.0**8)
    tensorrt_weights.require_float16(made(Scheme(SCHEMES[name].weights)), "m0")
    large = replace(q, global_scale=torch.tensor([2.0**-8])) if q.global_scale is not None else q
    with pytest.raises(StepFailed) as caught:
        tensorrt_weights.require_float16(large, "m0")
    assert caught.value.render() == (
        "error: `m0` holds values above 65,504, which float16 cannot hold\nhelp: build it with `precision: fp32`"
    )


def test_modules_with_the_same_inputs_share_their_rounding(tmp_path: Path) -> None:
    scheme = SCHEMES["static fp8"]
    q = made(scheme)
    other = replace(q, input_scale=torch.tensor([2.0**-5]))
    assert _roundings(graph(tmp_path, [(q, scheme), (q, scheme)], torch.float32)) == 1
    assert _roundings(graph(tmp_path, [(q, scheme), (other, scheme)], torch.float32)) == 2


def _roundings(path: Path) -> int:
    nodes: Any = onnx.load(str(path), load_external_data=False).graph.node
    return sum(node.op_type == "QuantizeLinear" for node in nodes)

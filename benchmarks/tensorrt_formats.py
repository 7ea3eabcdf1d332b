"""Ways of storing a weight that TensorRT for RTX parses and builds, and whether its engine keeps them: a product each.

    python -m benchmarks.tensorrt_formats

Needs the extra `tensorrt`, no GPU. The weight has 1024 × 1024 values: 2.10 MB at 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import tensorrt_rtx as trt  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto, helper

SIZE = 1024
WAYS = ("int8", "int8, inputs too", "fp8 by tensor, inputs too", "fp8 by row", "nvfp4", "nvfp4, inputs too")
CAPABILITIES = ("8.9", "12.0")
FP8, FP4 = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1


@dataclass
class Parts:
    """Nodes and constants of a graph; `weight` and `x` are the operands of its product."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    x: str = "x"
    weight: str = "weight"

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, array: Any, kind: int, shape: tuple[int, ...] = ()) -> str:
        self.constants.append(helper.make_tensor(name, kind, shape, array.tobytes(), raw=True))
        return name


def graph(way: str) -> ModelProto:
    """Return the graph of a product x·W with W, and where the name says so x, stored that way."""
    parts = Parts()
    {"int": _int8, "fp8": _fp8, "nvf": _nvfp4}[way[:3]](parts, way, np.random.default_rng(0))
    parts.node("MatMul", [parts.x, parts.weight], "y")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", SIZE]) for name in "xy")
    made = helper.make_graph(parts.nodes, "product", [x], [y], parts.constants)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=11)


def _int8(parts: Parts, way: str, generator: np.random.Generator) -> None:
    weight = generator.integers(-127, 127, (SIZE, SIZE)).astype(np.int8)
    parts.constant("w", weight, TensorProto.INT8, weight.shape)
    parts.constant("ws", np.full(SIZE, 0.01, np.float16), TensorProto.FLOAT16, (SIZE,))
    parts.node("DequantizeLinear", ["w", "ws"], parts.weight, axis=1)
    if "inputs" in way:
        parts.constant("xs", np.float16(0.02), TensorProto.FLOAT16)
        parts.node("QuantizeLinear", ["x", "xs"], "xq", output_dtype=TensorProto.INT8)
        parts.x = parts.node("DequantizeLinear", ["xq", "xs"], "xd")


def _fp8(parts: Parts, way: str, generator: np.random.Generator) -> None:
    weight = generator.standard_normal((SIZE, SIZE)).astype(ml_dtypes.float8_e4m3fn)
    parts.constant("w", weight, FP8, weight.shape)
    if "inputs" not in way:
        parts.constant("ws", np.full(SIZE, 0.01, np.float16), TensorProto.FLOAT16, (SIZE,))
        parts.node("DequantizeLinear", ["w", "ws"], parts.weight, axis=1)
        return
    parts.constant("ws", np.float16(0.01), TensorProto.FLOAT16)
    parts.node("DequantizeLinear", ["w", "ws"], parts.weight)
    parts.constant("xs", np.float16(0.02), TensorProto.FLOAT16)
    parts.constant("xz", np.zeros((), ml_dtypes.float8_e4m3fn), FP8)
    parts.node("QuantizeLinear", ["x", "xs", "xz"], "xq")
    parts.x = parts.node("DequantizeLinear", ["xq", "xs"], "xd")


def _nvfp4(parts: Parts, way: str, generator: np.random.Generator) -> None:
    """Blocks of 16 along the columns of W, their scales in FP8 with one of the matrix in float32."""
    parts.constant("w", generator.integers(0, 255, SIZE * SIZE // 2).astype(np.uint8), FP4, (SIZE, SIZE))
    scales = (np.abs(generator.standard_normal((SIZE // 16, SIZE))) + 0.1).astype(ml_dtypes.float8_e4m3fn)
    parts.constant("s", scales, FP8, scales.shape)
    parts.constant("g", np.float32(0.01), TensorProto.FLOAT)
    parts.node("DequantizeLinear", ["s", "g"], "sd")
    parts.node("DequantizeLinear", ["w", "sd"], "wd", axis=0, block_size=16)
    parts.node("Cast", ["wd"], parts.weight, to=TensorProto.FLOAT16)
    if "inputs" in way:
        parts.constant("xg", np.float32(0.02), TensorProto.FLOAT)
        parts.node("Cast", ["x"], "xf", to=TensorProto.FLOAT)
        quantize = helper.make_node("TRT_FP4DynamicQuantize", ["xf", "xg"], ["xq", "xs"], domain="trt", axis=-1,
                                    block_size=16, scale_type=FP8)  # fmt: skip
        parts.nodes.append(quantize)
        parts.node("DequantizeLinear", ["xs", "xg"], "xsd")
        parts.node("DequantizeLinear", ["xq", "xsd"], "xfd", axis=-1, block_size=16)
        parts.x = parts.node("Cast", ["xfd"], "xd", to=TensorProto.FLOAT16)


def build(model: ModelProto, capability: str) -> str:
    """Return the size of the engine, or which of parser and builder refused the graph."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(model.SerializeToString()):
        return f"not parsed: {parser.get_error(0).desc()}"
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, SIZE), (8, SIZE), (64, SIZE))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return "not built" if plan is None else f"{len(bytes(plan)) / 1e6:.2f} MB"


def main() -> None:
    print(f"| weight | {' | '.join(CAPABILITIES)} |\n|---|---|---|")
    for way in WAYS:
        model = graph(way)
        print(f"| {way} | {' | '.join(build(model, capability) for capability in CAPABILITIES)} |", flush=True)


if __name__ == "__main__":
    main()

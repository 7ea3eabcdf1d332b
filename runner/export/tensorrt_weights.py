"""Write a weight into a graph for TensorRT: constants, and DequantizeLinear, which makes [in, out] of them.

Floats, and integers whose inputs are rounded, lie as the checkpoint stores them, [out, in], and are transposed in the
graph, as NVIDIA's Model Optimizer writes linear layers of PyTorch. Scales that float16 does not hold exactly stay in
float32, and so does what they multiply, until it is cast. Of NVFP4 the scales of groups are dequantized first, by the
one scale of the matrix, and the weight by these ("double quantization").

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir
import torch

from runner.errors import StepFailed
from runner.export import integers
from runner.export.external_data import DataFile
from runner.export.graph_layouts import GraphLayout
from runner.export.nodes import Attributes, Nodes
from runner.model.checkpoint.quantization.bit_packing import pack_nibbles
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.quantized import Quantized

_LARGEST, _SMALLEST = 65504.0, 2.0**-14  # of float16, below which its numbers have fewer digits


class Codes(NamedTuple):
    """The bytes of a weight [out, in], and their type in ONNX; of 4 bits two codes a byte, the even column low."""

    tensor: torch.Tensor
    kind: ir.DataType


def codes(q: Quantized) -> Codes:
    """Return the codes of 8-bit integers, 8-bit floats or 4-bit floats: the bytes of a checkpoint that stores these."""
    if q.numbers.element == "float8_e4m3":
        return Codes(q.codes, ir.DataType.FLOAT8E4M3FN)
    if q.numbers.element == "float4_e2m1":
        return Codes(pack_nibbles(q.codes), ir.DataType.FLOAT4E2M1)
    return Codes((q.integers.to(torch.int16) - 2 ** (q.bits - 1)).to(torch.int8), ir.DataType.INT8)


def as_stored(made: Nodes, data: DataFile, module: str, q: Quantized, dtype: torch.dtype) -> ir.Value:
    """Add the weight [in, out] in `dtype`, float16 or float32, of the checkpoint's own bytes."""
    stored = codes(q)
    weight = made.constant(data.add(f"{module}.weight", stored.tensor, stored.kind, tuple(q.codes.shape)))
    attributes: Attributes
    if q.global_scale is not None:
        scales, attributes = _two_level(made, data, module, q), {"axis": 1, "block_size": q.group_size}
        out = _in_type(made, made.node("DequantizeLinear", [weight, scales], attributes), torch.float32, dtype)
    else:
        kind = _scale_type(q, dtype)
        flat = q.scale.to(kind).reshape(() if q.strategy == "tensor" else -1).contiguous()
        attributes = {"axis": 0} if flat.ndim else {}
        scales = made.constant(data.add(f"{module}.scales", flat))
        out = _in_type(made, made.node("DequantizeLinear", [weight, scales], attributes), kind, dtype)
    return made.node("Transpose", [out], {"perm": [1, 0]})


def as_integers(
    made: Nodes, data: DataFile, module: str, q: Quantized, how: GraphLayout, dtype: torch.dtype
) -> ir.Value:
    """Add the weight [in, out] in `dtype` of symmetric integers in INT4 or INT8, with blocks along columns."""
    # Scales of groups are many: float16 rounds those of a model in float32, but loses no digits of small ones.
    kind = dtype if float(q.scale.abs().min()) >= _SMALLEST else _scale_type(q, dtype)
    parts = integers.signed(q, how.field, kind)
    field = ir.DataType.INT4 if how.field == 4 else ir.DataType.INT8
    weight = made.constant(data.add(f"{module}.weight", parts.weight, field, (q.in_features, q.out_features)))
    scales = made.constant(data.add(f"{module}.scales", parts.scales))
    attributes = {"axis": 0, "block_size": how.block} if how.block else {"axis": 1}
    return _in_type(made, made.node("DequantizeLinear", [weight, scales], attributes), kind, dtype)


def require_float16(q: Quantized, module: str) -> None:
    """Raise StepFailed where float16 cannot hold a value of the weight."""
    shared = 1.0 if q.global_scale is None else float(q.global_scale)
    bound = Levels(q.numbers).reach * float(q.scale.float().abs().max()) / shared
    if bound > _LARGEST and not bool(q.dequantize(torch.float16).isfinite().all()):
        raise StepFailed(
            f"`{module}` holds values above 65,504, which float16 cannot hold", "build it with `precision: fp32`"
        )


def _scale_type(q: Quantized, dtype: torch.dtype) -> torch.dtype:
    """Return `dtype` where it holds all scales exactly, else float32."""
    return dtype if torch.equal(q.scale.to(dtype).double(), q.scale.double()) else torch.float32


def _in_type(made: Nodes, value: ir.Value, kind: torch.dtype, dtype: torch.dtype) -> ir.Value:
    return value if kind == dtype else made.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)})


def _two_level(made: Nodes, data: DataFile, module: str, q: Quantized) -> ir.Value:
    """Return the float32 scales of groups: the stored ones times the reciprocal of what they are to be divided by."""
    assert q.global_scale is not None
    kind = ir.DataType.FLOAT8E4M3FN
    scales = data.add(f"{module}.scales", q.scale.contiguous().view(torch.uint8), kind, tuple(q.scale.shape))
    shared = data.add(f"{module}.global_scale", q.global_scale.float().reciprocal().reshape(()))
    return made.node("DequantizeLinear", [made.constant(scales), made.constant(shared)])

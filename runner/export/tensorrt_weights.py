"""Write a weight into a graph for TensorRT as the checkpoint stores it: [out, in], transposed in the graph.

This is how NVIDIA's Model Optimizer writes linear layers of PyTorch. Of NVFP4 the scales of groups are dequantized
first, by the one scale of the matrix, and the weight by these ("double quantization").

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir
import torch

from runner.export.external_data import DataFile
from runner.export.nodes import Attributes, Nodes
from runner.model.checkpoint.quantization.bit_packing import pack_nibbles
from runner.model.checkpoint.quantization.quantized import Quantized


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


def dequantized(made: Nodes, data: DataFile, module: str, q: Quantized, dtype: torch.dtype) -> ir.Value:
    """Add the weight [in, out] in `dtype`, float16 or float32, to the graph.

    Scales that float16 does not hold exactly stay in float32, and so does what they multiply.
    """
    stored = codes(q)
    weight = made.constant(data.add(f"{module}.weight", stored.tensor, stored.kind, tuple(q.codes.shape)))
    attributes: Attributes
    if q.global_scale is not None:
        scales, attributes = _two_level(made, data, module, q), {"axis": 1, "block_size": q.group_size}
        kind = torch.float32
    else:
        kind = dtype if torch.equal(q.scale.to(dtype).double(), q.scale.double()) else torch.float32
        flat = q.scale.to(kind).reshape(() if q.strategy == "tensor" else -1).contiguous()
        scales = made.constant(data.add(f"{module}.scales", flat))
        attributes = {"axis": 0} if flat.ndim else {}
    out = made.node("DequantizeLinear", [weight, scales], attributes)
    if kind != dtype:
        out = made.node("Cast", [out], {"to": int(ir.DataType.FLOAT16)})
    return made.node("Transpose", [out], {"perm": [1, 0]})


def _two_level(made: Nodes, data: DataFile, module: str, q: Quantized) -> ir.Value:
    """Return the float32 scales of groups: the stored ones times the reciprocal of what they are to be divided by."""
    assert q.global_scale is not None
    kind = ir.DataType.FLOAT8E4M3FN
    scales = data.add(f"{module}.scales", q.scale.contiguous().view(torch.uint8), kind, tuple(q.scale.shape))
    shared = data.add(f"{module}.global_scale", q.global_scale.float().reciprocal().reshape(()))
    return made.node("DequantizeLinear", [made.constant(scales), made.constant(shared)])

"""Layouts that hold a checkpoint's numbers in a graph exactly. Imports no torch: the planner uses it for checks.

onnxruntime  com.microsoft MatMulNBits: fields of 4 or 8 bits, blocks of 16 to 256 columns that are powers of two. An
             integer of fewer bits fits the field with the same scale; a group that is a multiple of a block repeats it.
             Of INT8 weights whose inputs are rounded to INT8 token by token: MatMulInteger, a product of integers.
tensorrt     DequantizeLinear of signed INT4 or INT8 (opset 21), around zero: the zero point is always 0; of 8-bit
             floats by row or matrix; of NVFP4 (opset 23). Inputs are rounded by QuantizeLinear and DequantizeLinear
             (`runner.export.tensorrt_inputs`).
"""

from __future__ import annotations

from dataclasses import dataclass

from runner.model.checkpoint.quantization.scheme import Numbers, Scheme

ONNXRUNTIME = "onnxruntime"
TENSORRT = "tensorrt"
WEB = "web"  # onnxruntime in a browser: the operators are the same
TARGETS = (ONNXRUNTIME, TENSORRT, WEB)
BLOCKS = (256, 128, 64, 32, 16)  # MatMulNBits
NVFP4 = Numbers("float4_e2m1", 16, "float8_e4m3")


@dataclass(frozen=True)
class GraphLayout:
    """`field` bits hold each number; `block` columns share a stored scale (0: the full row or matrix).

    With `rounded` the inputs are rounded as the scheme says.
    """

    field: int
    block: int
    rounded: bool = False

    def describe(self, scheme: Scheme) -> str:
        """Return "3-bit integers in fields of 4 bits"; empty where the field has the bits of the checkpoint."""
        if self.field == scheme.bits:
            return ""
        return f"{scheme.bits}-bit integers in fields of {self.field} bits"


def layout_for(target: str, scheme: Scheme, in_features: int) -> GraphLayout | tuple[str, str]:
    """Return the layout of a weight of `in_features` columns in a graph for `target`; or (what is wrong, remedy)."""
    if target == TENSORRT:
        return _tensorrt(scheme, in_features)
    if _multiplies_integers(scheme):
        return GraphLayout(8, 0, rounded=True)
    if not scheme.is_integer:
        return (
            f"is stored as {scheme.describe()}; graphs hold integer weights, with inputs as they are or `w8a8`",
            "quantize with `bits` instead of `scheme`, or export the dense checkpoint",
        )
    field = 4 if scheme.bits <= 4 else 8
    if scheme.strategy != "group":
        return GraphLayout(field, 128)
    block = next((size for size in BLOCKS if scheme.columns(in_features) % size == 0), None)
    if block is None:
        return (
            f"has group_size {scheme.group_size}, which is no multiple of 16: MatMulNBits takes blocks of 16 to 256",
            f"quantize with group_size {_near(scheme.columns(in_features))}",
        )
    return GraphLayout(field, block)


def _multiplies_integers(scheme: Scheme) -> bool:
    """Whether a scheme is that of `w8a8`: symmetric INT8 weights by row or matrix, and inputs by token, dynamically."""
    weights = scheme.weights
    return (
        weights.element == "int8" and weights.symmetric and weights.strategy in ("channel", "tensor")
        and scheme.activations == Numbers("int8", "token") and scheme.dynamic
    )  # fmt: skip


def _tensorrt(scheme: Scheme, in_features: int) -> GraphLayout | tuple[str, str]:
    weights, inputs = scheme.weights, scheme.activations
    if weights == NVFP4 and inputs in (None, NVFP4):
        return GraphLayout(4, 16, rounded=inputs is not None)
    whole = weights.symmetric and weights.strategy in ("channel", "tensor")
    if whole and weights.element == "float8_e4m3" and inputs is None:
        return GraphLayout(8, 0)
    if whole and weights.element in ("float8_e4m3", "int8") and inputs is not None:
        calibrated = not scheme.dynamic and inputs == Numbers(weights.element, "tensor")
        if calibrated or (scheme.dynamic and inputs == Numbers(weights.element, "token")):
            return GraphLayout(8, 0, rounded=True)
    if not scheme.is_integer:
        return (
            f"is stored as {scheme.describe()}; graphs for TensorRT hold integers, `w8a8`, `fp8` by row, and `nvfp4`",
            "quantize with one of these, or serve the checkpoint with vLLM",
        )
    return _tensorrt_integers(scheme, in_features)


def _tensorrt_integers(scheme: Scheme, in_features: int) -> GraphLayout | tuple[str, str]:
    field = 4 if scheme.bits <= 4 else 8
    if not scheme.symmetric:
        return (
            "is quantized asymmetrically; TensorRT's INT4 and INT8 have no zero points",
            "quantize with `symmetric: true`, or use `target: onnxruntime`",
        )
    if scheme.strategy != "group":
        return GraphLayout(field, 0)
    if in_features % scheme.columns(in_features):
        return (
            f"has {in_features} columns, which group_size {scheme.group_size} does not divide",
            "quantize with a group_size that divides them, or use `target: onnxruntime`",
        )
    return GraphLayout(field, scheme.columns(in_features))


def _near(size: int) -> int:
    return max(16, size // 16 * 16)

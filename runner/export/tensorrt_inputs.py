"""Round the inputs of a product in a graph for TensorRT, by the operators that its parser reads as a quantization.

static   QuantizeLinear and DequantizeLinear with the calibrated scale.
token    TensorRT has scales for each token in no operator, and takes constants alone in QuantizeLinear. Inputs are
         divided by the scale of their token first, so that QuantizeLinear and DequantizeLinear have a constant power
         of two, and the product is multiplied by the scales: the same numbers, since a token's scale is that of a row
         of the result.
NVFP4    TRT_FP4DynamicQuantize (domain `trt`) gives codes and 8-bit scales of groups, two DequantizeLinear take them.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-schemes.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir
import torch

from runner.export.nodes import Nodes, token_scales
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import Numbers

TENSORRT_DOMAIN = "trt"
NVFP4_OPERATOR = "TRT_FP4DynamicQuantize"
_KINDS = {"int8": ir.DataType.INT8, "float8_e4m3": ir.DataType.FLOAT8E4M3FN}
_STEPS = {"int8": 2.0**-7, "float8_e4m3": 2.0**-9}  # levels times this are at most 1: their sums fit float16


class Rounded(NamedTuple):
    """Rounded inputs, and the float32 scales [..., 1] that their product is to be multiplied by; None: by nothing."""

    x: ir.Value
    scales: ir.Value | None


@dataclass(frozen=True)
class Key:
    """What inputs are rounded by: modules with the same inputs and an equal key share the nodes."""

    numbers: Numbers
    calibrated: float | None


class TensorrtInputs:
    """Adds the nodes that round inputs, once for all modules that share them. `dtype` is the graph's float type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._kind = ir.DataType.FLOAT if dtype == torch.float32 else ir.DataType.FLOAT16
        self._made: dict[tuple[ir.Value, Key], Rounded] = {}

    def rounded(self, made: Nodes, x: ir.Value, numbers: Numbers, calibrated: torch.Tensor | None) -> Rounded:
        """Return `x` rounded to `numbers`; `calibrated` as in `activation_rounding.round_inputs`."""
        key = Key(numbers, None if calibrated is None else float(calibrated))
        if (x, key) not in self._made:
            self._made[x, key] = self._round(made, x, key)
        return self._made[x, key]

    def _round(self, made: Nodes, x: ir.Value, key: Key) -> Rounded:
        if key.calibrated is None:
            return self._by_token(made, x, key.numbers)
        if key.numbers.two_level:
            return Rounded(self._nvfp4(made, x, key.calibrated), None)
        return Rounded(self._static(made, x, key.numbers.element, key.calibrated), None)

    def _static(self, made: Nodes, x: ir.Value, element: str, scale: float) -> ir.Value:
        """Round with a constant scale, in float32 where float16 does not hold it exactly."""
        kind = self._kind
        if kind == ir.DataType.FLOAT16 and float(torch.tensor(scale).half()) != scale:
            kind, x = ir.DataType.FLOAT, made.cast(x, kind, ir.DataType.FLOAT)
        step = made.number("input_scale", scale, kind)
        zero = made.number("input_zero", 0, _KINDS[element])
        codes = made.node("QuantizeLinear", [x, step, zero])
        return made.cast(made.node("DequantizeLinear", [codes, step]), kind, self._kind)

    def _by_token(self, made: Nodes, x: ir.Value, numbers: Numbers) -> Rounded:
        """Round with a scale for each token. A token of zeros gets a scale of 1."""
        step = _STEPS[numbers.element]
        wide = made.cast(x, self._kind, ir.DataType.FLOAT)
        scale = token_scales(made, wide, Levels(numbers).full_range * step)
        scaled = made.cast(made.node("Div", [wide, scale]), ir.DataType.FLOAT, self._kind)
        return Rounded(self._static(made, scaled, numbers.element, step), scale)

    def _nvfp4(self, made: Nodes, x: ir.Value, calibrated: float) -> ir.Value:
        """Round groups of 16 with scales relative to 1 / `calibrated`, which TensorRT multiplies by."""
        wide = made.cast(x, self._kind, ir.DataType.FLOAT)
        shared = made.number("input_scale", float(torch.tensor(calibrated).reciprocal()))
        attributes = {"axis": -1, "block_size": 16, "scale_type": int(ir.DataType.FLOAT8E4M3FN)}
        codes, scales = made.pair(NVFP4_OPERATOR, [wide, shared], attributes, TENSORRT_DOMAIN)
        scales = made.node("DequantizeLinear", [scales, shared])
        out = made.node("DequantizeLinear", [codes, scales], {"axis": -1, "block_size": 16})
        return made.cast(out, ir.DataType.FLOAT, self._kind)

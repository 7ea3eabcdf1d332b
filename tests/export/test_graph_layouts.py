"""What goes into a graph as it is, in which blocks, and what is refused."""

from __future__ import annotations

import pytest

from runner.export.graph_layouts import ONNXRUNTIME, TENSORRT, GraphLayout, layout_for
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.scheme import Numbers, Scheme, integers


@pytest.mark.parametrize(("scheme", "columns", "wanted"), [
    (integers(4, 128, True), 256, GraphLayout(4, 128)),
    (integers(4, 128, False), 256, GraphLayout(4, 128)),
    (integers(4, 16, True), 64, GraphLayout(4, 16)),
    (integers(4, 512, True), 1024, GraphLayout(4, 256)),
    (integers(4, 96, True), 192, GraphLayout(4, 32)),
    (integers(4, 48, True), 96, GraphLayout(4, 16)),
    (integers(2, 64, True), 64, GraphLayout(4, 64)),
    (integers(3, 64, False), 64, GraphLayout(4, 64)),
    (integers(5, 64, True), 64, GraphLayout(8, 64)),
    (integers(8, "channel", True), 200, GraphLayout(8, 128)),
    (integers(8, "tensor", False), 64, GraphLayout(8, 128)),
])  # fmt: skip
def test_for_onnxruntime(scheme: Scheme, columns: int, wanted: GraphLayout) -> None:
    assert layout_for(ONNXRUNTIME, scheme, columns) == wanted


@pytest.mark.parametrize(("scheme", "wanted"), [
    (integers(4, 128, True), GraphLayout(4, 128)),
    (integers(3, 96, True), GraphLayout(4, 96)),
    (integers(8, "channel", True), GraphLayout(8, 0)),
    (integers(6, 64, True), GraphLayout(8, 64)),
])  # fmt: skip
def test_for_tensorrt(scheme: Scheme, wanted: GraphLayout) -> None:
    assert layout_for(TENSORRT, scheme, 384) == wanted


@pytest.mark.parametrize(("target", "scheme", "columns", "wanted"), [
    (ONNXRUNTIME, integers(4, 40, True), 80, (
        "has group_size 40, which is no multiple of 16: MatMulNBits takes blocks of 16 to 256",
        "quantize with group_size 32",
    )),
    (TENSORRT, integers(4, 128, False), 256, (
        "is quantized asymmetrically; TensorRT's INT4 and INT8 have no zero points",
        "quantize with `symmetric: true`, or use `target: onnxruntime`",
    )),
    (TENSORRT, integers(4, 128, True), 200, (
        "has 200 columns, which group_size 128 does not divide",
        "quantize with a group_size that divides them, or use `target: onnxruntime`",
    )),
])  # fmt: skip
def test_what_is_refused(target: str, scheme: Scheme, columns: int, wanted: tuple[str, str]) -> None:
    assert layout_for(target, scheme, columns) == wanted


def test_wider_fields_are_told() -> None:
    assert GraphLayout(4, 64).describe(integers(3, 64, True)) == "3-bit integers in fields of 4 bits"
    assert GraphLayout(4, 64).describe(integers(4, 64, True)) == ""


FP8 = Numbers("float8_e4m3", "channel")
STATIC = Scheme(FP8, Numbers("float8_e4m3", "tensor"), dynamic=False)


@pytest.mark.parametrize(("scheme", "wanted"), [
    (PRESETS["w8a8"], GraphLayout(8, 0, rounded=True)), (PRESETS["fp8"], GraphLayout(8, 0, rounded=True)),
    (STATIC, GraphLayout(8, 0, rounded=True)), (Scheme(FP8), GraphLayout(8, 0)),
    (PRESETS["nvfp4"], GraphLayout(4, 16, rounded=True)), (PRESETS["nvfp4a16"], GraphLayout(4, 16)),
])  # fmt: skip
def test_floats_and_rounded_inputs_for_tensorrt(scheme: Scheme, wanted: GraphLayout) -> None:
    assert layout_for(TENSORRT, scheme, 256) == wanted
    assert isinstance(layout_for(ONNXRUNTIME, scheme, 256), GraphLayout) == (scheme == PRESETS["w8a8"])


@pytest.mark.parametrize("scheme", [
    PRESETS["fp8_block"], PRESETS["mxfp4"], PRESETS["mxfp8a16"], PRESETS["w4afp8"], PRESETS["w4a8"],
    Scheme(FP8, Numbers("int8", "token")), Scheme(FP8, Numbers("float8_e4m3", "tensor")),
    Scheme(Numbers("int8", "channel", symmetric=False), Numbers("int8", "token")),
], ids=str)  # fmt: skip
def test_what_tensorrt_has_no_graph_of(scheme: Scheme) -> None:
    """Blocks, powers of two as scales, two types in one product, one scale of all inputs that is not calibrated."""
    found = layout_for(TENSORRT, scheme, 256)
    assert found == (
        f"is stored as {scheme.describe()}; graphs for TensorRT hold integers, `w8a8`, `fp8` by row, and `nvfp4`",
        "quantize with one of these, or serve the checkpoint with vLLM",
    )


def test_floats_are_refused_for_onnxruntime() -> None:
    assert layout_for(ONNXRUNTIME, PRESETS["fp8"], 256) == (
        f"is stored as {PRESETS['fp8'].describe()}; graphs hold integer weights, with inputs as they are or `w8a8`",
        "quantize with `bits` instead of `scheme`, or export the dense checkpoint",
    )


@pytest.mark.parametrize(("weights", "inputs", "rounded"), [
    (Numbers("int8", "channel"), Numbers("int8", "token"), True),
    (Numbers("int8", "tensor"), Numbers("int8", "token"), True),
    (Numbers("int8", 64), Numbers("int8", "token"), False),
    (Numbers("int8", "channel", symmetric=False), Numbers("int8", "token"), False),
    (Numbers("int4", "channel"), Numbers("int8", "token"), False),
    (Numbers("int8", "channel"), Numbers("int8", "tensor"), False),
])  # fmt: skip
def test_integers_are_multiplied_with_integers_where_the_scheme_is_w8a8(
    weights: Numbers, inputs: Numbers, rounded: bool
) -> None:
    for target in (ONNXRUNTIME, TENSORRT):
        found = layout_for(target, Scheme(weights, inputs), 256)
        assert (found == GraphLayout(8, 0, rounded=True)) == rounded

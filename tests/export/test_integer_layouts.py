"""What goes into a graph as it is, in which blocks, and what is refused."""

from __future__ import annotations

import pytest

from runner.export.integer_layouts import ONNXRUNTIME, TENSORRT, IntegerLayout, layout_for
from runner.model.checkpoint.quantization.scheme import Numbers, Scheme, integers


@pytest.mark.parametrize(("scheme", "columns", "wanted"), [
    (integers(4, 128, True), 256, IntegerLayout(4, 128)),
    (integers(4, 128, False), 256, IntegerLayout(4, 128)),
    (integers(4, 16, True), 64, IntegerLayout(4, 16)),
    (integers(4, 512, True), 1024, IntegerLayout(4, 256)),
    (integers(4, 96, True), 192, IntegerLayout(4, 32)),
    (integers(4, 48, True), 96, IntegerLayout(4, 16)),
    (integers(2, 64, True), 64, IntegerLayout(4, 64)),
    (integers(3, 64, False), 64, IntegerLayout(4, 64)),
    (integers(5, 64, True), 64, IntegerLayout(8, 64)),
    (integers(8, "channel", True), 200, IntegerLayout(8, 128)),
    (integers(8, "tensor", False), 64, IntegerLayout(8, 128)),
])  # fmt: skip
def test_for_onnxruntime(scheme: Scheme, columns: int, wanted: IntegerLayout) -> None:
    assert layout_for(ONNXRUNTIME, scheme, columns) == wanted


@pytest.mark.parametrize(("scheme", "wanted"), [
    (integers(4, 128, True), IntegerLayout(4, 128)),
    (integers(3, 96, True), IntegerLayout(4, 96)),
    (integers(8, "channel", True), IntegerLayout(8, 0)),
    (integers(6, 64, True), IntegerLayout(8, 64)),
])  # fmt: skip
def test_for_tensorrt(scheme: Scheme, wanted: IntegerLayout) -> None:
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
    assert IntegerLayout(4, 64).describe(integers(3, 64, True)) == "3-bit integers in fields of 4 bits"
    assert IntegerLayout(4, 64).describe(integers(4, 64, True)) == ""


@pytest.mark.parametrize("target", [ONNXRUNTIME, TENSORRT])
def test_floats_and_rounded_inputs_are_refused(target: str) -> None:
    fp8 = Scheme(Numbers("float8_e4m3", "channel"), Numbers("float8_e4m3", "token"))
    assert layout_for(target, fp8, 256) == (
        (
            "is stored as float8_e4m3, per channel; inputs dynamically to float8_e4m3, per token; graphs hold integer "
            "weights, with inputs as they are" + (" or `w8a8`" if target == ONNXRUNTIME else "")
        ),
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
    found = layout_for(ONNXRUNTIME, Scheme(weights, inputs), 256)
    assert (found == IntegerLayout(8, 0, rounded=True)) == rounded
    assert not isinstance(layout_for(TENSORRT, Scheme(weights, inputs), 256), IntegerLayout)

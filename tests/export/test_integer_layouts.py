"""What goes into a graph as it is, in which blocks, and what is refused."""

from __future__ import annotations

import pytest

from runner.export.integer_layouts import ONNXRUNTIME, TENSORRT, Carried, carried
from runner.model.checkpoint.formats import Scheme


@pytest.mark.parametrize(("scheme", "columns", "wanted"), [
    (Scheme(4, 128, True), 256, Carried(4, 128)),
    (Scheme(4, 128, False), 256, Carried(4, 128)),
    (Scheme(4, 16, True), 64, Carried(4, 16)),
    (Scheme(4, 512, True), 1024, Carried(4, 256)),
    (Scheme(4, 96, True), 192, Carried(4, 32)),
    (Scheme(4, 48, True), 96, Carried(4, 16)),
    (Scheme(2, 64, True), 64, Carried(4, 64)),
    (Scheme(3, 64, False), 64, Carried(4, 64)),
    (Scheme(5, 64, True), 64, Carried(8, 64)),
    (Scheme(8, "channel", True), 200, Carried(8, 128)),
    (Scheme(8, "tensor", False), 64, Carried(8, 128)),
])  # fmt: skip
def test_for_onnxruntime(scheme: Scheme, columns: int, wanted: Carried) -> None:
    assert carried(ONNXRUNTIME, scheme, columns) == wanted


@pytest.mark.parametrize(("scheme", "wanted"), [
    (Scheme(4, 128, True), Carried(4, 128)),
    (Scheme(3, 96, True), Carried(4, 96)),
    (Scheme(8, "channel", True), Carried(8, 0)),
    (Scheme(6, 64, True), Carried(8, 64)),
])  # fmt: skip
def test_for_tensorrt(scheme: Scheme, wanted: Carried) -> None:
    assert carried(TENSORRT, scheme, 384) == wanted


@pytest.mark.parametrize(("target", "scheme", "columns", "wanted"), [
    (ONNXRUNTIME, Scheme(4, 40, True), 80, (
        "has group_size 40, which is no multiple of 16: MatMulNBits takes blocks of 16 to 256",
        "quantize with group_size 32",
    )),
    (TENSORRT, Scheme(4, 128, False), 256, (
        "is quantized asymmetrically; TensorRT's INT4 and INT8 have no zero points",
        "quantize with `symmetric: true`, or use `target: onnxruntime`",
    )),
    (TENSORRT, Scheme(4, 128, True), 200, (
        "has 200 columns, which group_size 128 does not divide",
        "quantize with a group_size that divides them, or use `target: onnxruntime`",
    )),
])  # fmt: skip
def test_what_is_refused(target: str, scheme: Scheme, columns: int, wanted: tuple[str, str]) -> None:
    assert carried(target, scheme, columns) == wanted


def test_wider_fields_are_told() -> None:
    assert Carried(4, 64).describe(Scheme(3, 64, True)) == "3-bit integers in fields of 4 bits"
    assert Carried(4, 64).describe(Scheme(4, 64, True)) == ""

"""The builder's process: what it refuses, and that it ends."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from runner.errors import Interrupted, RunnerError, StepFailed
from runner.export import tensorrt
from runner.export.tensorrt import Order

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)


class Asked:
    """As much of a Context as the builder asks for."""

    threads = 1

    def __init__(self, stop: bool = False) -> None:
        self.stop = stop

    def safe_point(self) -> None:
        if self.stop:
            raise Interrupted("stopped")


def order(graph: str = "model.onnx") -> Order:
    shapes: tensorrt.Range = ([1, 64], [2, 64], [4, 64])
    return Order(graph, "model.engine", "rtx", ["8.6"], 10**9, {"only": {"x": shapes}}, None)


def product(path: Path, kind: int = TensorProto.INT4) -> None:
    weight = helper.make_tensor("w", kind, (64, 32), bytes(range(256)) * 4, raw=True)
    scales = helper.make_tensor("s", TensorProto.FLOAT16, (2, 32), b"\x00\x3c" * 64, raw=True)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["b", size]) for name, size in (("x", 64), ("y", 32))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(path))


def refused(folder: Path, asked: Order) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        tensorrt.build(Asked(), asked, folder)  # type: ignore[arg-type]
    assert not list(folder.glob("*model.engine*"))
    return caught.value


def test_weights_stay_at_four_bits(tmp_path: Path) -> None:
    product(tmp_path / "model.onnx")
    built = tensorrt.build(Asked(), order(), tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "model.engine").stat().st_size == built.engine_bytes
    assert built.weights_bytes is not None
    packed = 64 * 32 // 2 + 2 * 64
    assert packed <= built.weights_bytes < packed + 2048 < 64 * 32 * 2
    assert built.capabilities == ["8.6"]
    assert built.inputs == [{"name": "x", "type": "half", "shape": [-1, 64]}]
    assert built.memory > 100 << 20


def test_a_corrupt_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    error = refused(tmp_path, order())
    assert isinstance(error, StepFailed)
    assert " cannot read the graph model.onnx: " in error.message


def test_unsigned_integers_are_refused_by_the_parser(tmp_path: Path) -> None:
    product(tmp_path / "model.onnx", TensorProto.UINT4)
    assert "Failed to import initializer: w" in refused(tmp_path, order()).message


def test_what_tensorrt_complains_of_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    tensorrt_rtx = importlib.import_module("tensorrt_rtx")
    log = tensorrt.complaints(tensorrt_rtx)
    assert (tensorrt.quoted(log.errors), log.weights) == ("it gave no reason", None)
    severity = tensorrt_rtx.ILogger.Severity
    log.log(severity.VERBOSE, "Total Weights Memory: 4096 bytes")
    for text in ("one\n  error", "one error", "two", "three", "four"):
        log.log(severity.ERROR, text)
    assert (tensorrt.quoted(log.errors), log.weights) == ("one error; two", 4096)
    assert tensorrt.is_memory("Cuda Runtime (out of memory)")
    assert not tensorrt.is_memory("a workspace limit")
    assert capfd.readouterr().err == "one\n  error\none error\ntwo\nthree\nfour\n"


def test_a_stop_ends_the_builder(tmp_path: Path) -> None:
    product(tmp_path / "model.onnx")
    with pytest.raises(Interrupted):
        tensorrt.build(Asked(stop=True), order(), tmp_path)  # type: ignore[arg-type]
    assert not (tmp_path / "model.engine").exists()


def test_profiles_of_prompt_and_continuation() -> None:
    found = tensorrt.profiles(tensorrt.Shape(1, 2, 16), 4, 100)
    assert found["prefill"]["input_ids"] == ([1, 1], [4, 50], [4, 100])
    assert found["prefill"]["past_key_values.0.key"] == ([1, 2, 0, 16], [4, 2, 0, 16], [4, 2, 0, 16])
    assert found["decode"]["position_ids"] == ([1, 1], [4, 1], [4, 1])
    assert found["decode"]["attention_mask"] == ([1, 2], [4, 51], [4, 100])
    assert found["decode"]["past_key_values.0.value"] == ([1, 2, 1, 16], [4, 2, 50, 16], [4, 2, 99, 16])


def test_only_enterprise_keeps_times(tmp_path: Path) -> None:
    assert tensorrt.timing_cache("rtx", "none", tmp_path) is None
    path = tensorrt.timing_cache("enterprise", "NVIDIA H100", tmp_path)
    assert path == str(tmp_path / "tensorrt" / "nvidia-h100.timing")

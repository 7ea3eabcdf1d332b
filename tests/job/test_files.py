"""Files of a job: what is linked to the store, and what must be copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runner.job import files


def test_files_are_linked(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    files.link(tmp_path / "model.safetensors", tmp_path / "job" / "model.safetensors")
    assert (tmp_path / "job" / "model.safetensors").stat().st_nlink == 2


def test_a_graph_of_a_job_is_loaded_by_onnx(tmp_path: Path) -> None:
    """Its loader refuses weights with several links."""
    store, job = tmp_path / "store", tmp_path / "job"
    store.mkdir()
    weight = numpy_helper.from_array(np.arange(64, dtype=np.float32), "w")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "sum", ports[:1], ports[1:], [weight])
    onnx.save(
        helper.make_model(graph), store / "model.onnx", save_as_external_data=True, location="model.onnx_data",
        size_threshold=0,
    )  # fmt: skip
    for name in ("model.onnx", "model.onnx_data"):
        files.link(store / name, job / name)
        assert files.same_file(store / name, job / name)
    (loaded,) = onnx.load(job / "model.onnx").graph.initializer
    assert numpy_helper.to_array(loaded).tolist() == list(range(64))

"""A graph for TensorRT run by ONNX's own evaluator, with the one operator of TensorRT that it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


class TRT_FP4DynamicQuantize(OpRun):  # the name is how the evaluator finds it
    """NVIDIA's "dynamic double quantization": s = e4m3(max |block| / 6 / global), codes = e2m1(x / (s · global))."""

    op_domain = "trt"

    def _run(self, x: Any, shared: Any, axis: int = -1, block_size: int = 16, scale_type: int = 0) -> Any:
        assert (axis, block_size, scale_type) == (-1, 16, onnx.TensorProto.FLOAT8E4M3FN)
        assert x.dtype == shared.dtype == np.float32
        blocks = x.reshape(*x.shape[:-1], -1, 16)
        scales = (np.abs(blocks).max(-1) / np.float32(6) / shared).clip(max=448).astype(ml_dtypes.float8_e4m3fn)
        wide = scales.astype(np.float32) * shared
        codes = (blocks / np.where(wide > 0, wide, 1)[..., None]).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn)
        return codes.reshape(x.shape), scales


def run(path: Path, given: dict[str, Any]) -> Any:
    """Return the first output of a graph."""
    outputs: Any = ReferenceEvaluator(onnx.load(str(path)), new_ops=[TRT_FP4DynamicQuantize]).run(None, given)
    return outputs[0]


def logits(path: Path, ids: Any) -> Any:
    """Return the logits of a decoder's graph for prompts [batch, length], with an empty cache."""
    batch, length = ids.shape
    given: dict[str, Any] = {
        "input_ids": ids, "attention_mask": np.ones_like(ids),
        "position_ids": np.broadcast_to(np.arange(length), (batch, length)),
    }  # fmt: skip
    for value in onnx.load(str(path), load_external_data=False).graph.input[3:]:
        sizes = [each.dim_value for each in value.type.tensor_type.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        given[value.name] = np.zeros((batch, sizes[1], 0, sizes[3]), kind)
    return run(path, given)

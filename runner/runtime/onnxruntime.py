"""Run an ONNX graph of `build.onnx` by onnxruntime. The cache stays in its OrtValues from step to step.

A graph with fused attention writes new keys and values into the cache that it is given, where that has room for them;
every other one returns a longer copy of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import MachineError, StepFailed
from runner.export import preflight
from runner.runtime import limits
from runner.runtime.protocol import Ids, Logits

_BUILD_AGAIN = "build it again"
_ROOM = 256  # positions that a cache written in place has beyond those it needs when it is made
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open(folder: Path, device: str = "cpu", threads: int | None = None) -> OnnxRuntime:
    """Return the runtime of the engine in `folder`; `threads` defaults to the cores that this process may use."""
    return OnnxRuntime(folder, device, threads)


class OnnxRuntime:
    """The runtime of one inference session."""

    name = "onnxruntime"
    max_batch: int | None = None

    def __init__(self, folder: Path, device: str = "cpu", threads: int | None = None) -> None:
        import onnxruntime as ort  # type: ignore[import-untyped]

        from runner.runtime import open as find

        engine = find.engine(folder) or {}
        if preflight.holds_nvfp4(engine):
            message = f"the graph in `{folder}` has weights in 4-bit floats, which onnxruntime does not know"
            raise MachineError(message, "build an engine of it with `build.tensorrt`")
        try:
            self.vocabulary, self.context = int(engine["vocabulary"]), int(engine["context"])
            self._layers, heads, width = int(engine["layers"]), int(engine["kv_heads"]), int(engine["head_dim"])
            path = folder / str(engine["file"])
            dtype = np.dtype(str(engine["inputs"][-1]["dtype"]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise StepFailed(
                f"`{folder / find.ENGINE_FILE}` does not describe an ONNX graph: {error!r}", _BUILD_AGAIN
            ) from None
        if device == "cuda" and engine.get("operators") == "fused":
            message = f"the graph in `{folder}` has onnxruntime's fused attention, which runs on processors alone"
            raise MachineError(message, "choose the device `cpu`, or build it with `operators: standard`")
        may_multiply_integers = engine.get("target") == "onnxruntime"
        self._session = _session(ort, path, device, threads or len(os.sched_getaffinity(0)), may_multiply_integers)
        self._device, self._ort = device, ort
        self._in_place = bool(engine.get("past_present_share_buffer"))
        self._empty = (heads, width, dtype)
        self._cached = 0
        self._past: list[Any] = []

    def prefill(self, ids: Ids, *, last: bool = False) -> Logits:
        limits.check(ids, 0, self.context, self.max_batch, self.vocabulary)
        heads, width, dtype = self._empty
        shape = len(ids), heads, self._room(ids.shape[1]), width
        # Each value needs an array of its own: on a processor it lies in the array's memory.
        self._past = [self._value(np.zeros(shape, dtype)) for _ in range(2 * self._layers)]
        self._cached = 0
        logits = self._run(ids)
        return logits[:, -1:] if last else logits

    def decode(self, ids: Ids) -> Logits:
        limits.check(ids, self._cached, self.context, self.max_batch, self.vocabulary)
        return self._run(ids)

    def close(self) -> None:
        self._session = None
        self._past = []

    def _value(self, array: Any) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)

    def _room(self, total: int) -> int:
        """Return how many positions a new cache for `total` tokens has."""
        return min(self.context, total + _ROOM) if self._in_place else 0

    def _make_room(self, total: int) -> None:
        """Move a cache that is written in place to a larger one where `total` tokens do not fit."""
        heads, width, dtype = self._empty
        if not self._in_place or total <= self._past[0].shape()[2]:
            return
        for place, value in enumerate(self._past):
            held = value.numpy()
            larger = np.zeros((len(held), heads, self._room(2 * total), width), dtype)
            larger[:, :, : self._cached] = held[:, :, : self._cached]
            self._past[place] = self._value(larger)

    def _run(self, ids: Ids) -> Logits:
        batch, new = ids.shape
        total = self._cached + new
        self._make_room(total)
        positions = np.broadcast_to(np.arange(self._cached, total, dtype=np.int64), (batch, new))
        given: Mapping[str, Any] = {
            "input_ids": np.ascontiguousarray(ids),
            "attention_mask": np.ones((batch, total), np.int64),
            "position_ids": np.ascontiguousarray(positions),
        }
        binding = self._session.io_binding()
        for name, array in given.items():
            binding.bind_ortvalue_input(name, self._value(array))
        for layer in range(self._layers):
            for place, part in enumerate(("key", "value")):
                binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", self._past[2 * layer + place])
        binding.bind_output("logits", "cpu")
        for layer in range(self._layers):
            for place, part in enumerate(("key", "value")):
                if self._in_place:
                    binding.bind_ortvalue_output(f"present.{layer}.{part}", self._past[2 * layer + place])
                else:
                    binding.bind_output(f"present.{layer}.{part}", self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises classes of its own for every failure
            raise StepFailed(f"onnxruntime could not run the graph: {error}") from error
        logits, *present = binding.get_outputs()
        if not self._in_place:  # otherwise they are the same values, whose arrays these would not keep alive
            self._past = present
        self._cached = total
        found: Logits = logits.numpy()
        return found


def _session(ort: Any, path: Path, device: str, threads: int, may_multiply_integers: bool) -> Any:
    provider = _PROVIDERS.get(device, device)
    if provider not in ort.get_available_providers():
        raise MachineError(
            f"onnxruntime has no {provider} here, which the device `{device}` needs",
            "`pip install onnxruntime-gpu` where there is a GPU, or choose the device `cpu`",
        )
    if not path.is_file():
        raise StepFailed(f"`{path}` is missing", _BUILD_AGAIN)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors are raised
    # By default onnxruntime rounds activations to 8 bits where DequantizeLinear feeds a product.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if may_multiply_integers:
        # Without it, sums of products of 8-bit integers saturate on x86 processors that have no VNNI. With it,
        # onnxruntime 1.32 breaks the DequantizeLinear of weights with a scale for each channel.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises classes of its own for every failure
        raise StepFailed(f"onnxruntime cannot load `{path}`: {error}", _BUILD_AGAIN) from error

"""Run a checkpoint, dense or packed, with its adapter if it has one, by transformers' own model code."""

from __future__ import annotations

import contextlib
import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.model.checkpoint import adapter_config
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.streamed_model import StreamedModel
from runner.model.layerwise.whole_model import load_dense, load_streamed
from runner.runtime import limits
from runner.runtime.protocol import Ids, Logits

_SCALES = (".scales", ".weight_scale")
_UNLIMITED = 1 << 20  # tokens, where config.json names no limit


class Exact(CheckpointReader):
    """Reads packed weights as scale · (integers − zero point) in float32, as engines with integer weights compute.

    `CheckpointReader` rounds that product to the type of the scales, as the readers of those formats do.
    """

    def read(self, name: str, *, finite: bool = True) -> torch.Tensor:
        tensor = super().read(name, finite=finite)
        return tensor.float() if name.endswith(_SCALES) and tensor.is_floating_point() else tensor


def load(folder: Path, device: str, dtype: torch.dtype | None, *, exact: bool = False) -> StreamedModel:
    """Load a checkpoint with all its weights in memory, dense, with its adapter active, and close its files."""
    streamed = StreamedModel(folder, device, dtype)
    if exact:
        streamed.reader.close()
        streamed.reader = Exact(folder)
    load_streamed(streamed)
    return streamed


class Transformers:
    """The runtime of a checkpoint. All weights are in memory, unpacked, in `dtype` (default: the fastest type here)."""

    name = "transformers"
    max_batch: int | None = None

    def __init__(
        self, folder: Path, device: str = "cpu", dtype: torch.dtype | None = None, *, exact: bool = False
    ) -> None:
        streamed = load(folder, device, dtype, exact=exact)
        self._start(streamed.model, streamed.device)

    def _start(self, model: Any, device: torch.device) -> None:
        text = model.config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        self.context = int(getattr(text, "max_position_embeddings", None) or _UNLIMITED)
        self._model, self._device = model, device
        # What a model calls its cache: those of state-space layers alone have a name of their own.
        named = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in named else "past_key_values"
        self._cache: Any = None
        self._cached = 0

    def prefill(self, ids: Ids, *, last: bool = False) -> Logits:
        from transformers import DynamicCache

        limits.check(ids, 0, self.context, self.max_batch, self.vocabulary)
        self._cache = DynamicCache(config=self._model.config)
        self._cached = 0
        return self._run(ids, 1 if last else 0)

    def decode(self, ids: Ids) -> Logits:
        limits.check(ids, self._cached, self.context, self.max_batch, self.vocabulary)
        return self._run(ids, 1)

    def close(self) -> None:
        self._model = self._cache = None

    def _run(self, ids: Ids, keep: int) -> Logits:
        given = torch.from_numpy(np.ascontiguousarray(ids)).to(self._device)
        with torch.inference_mode():
            out = self._model(input_ids=given, use_cache=True, logits_to_keep=keep, **{self._cache_name: self._cache})
        self._cache = out[self._cache_name]
        self._cached += ids.shape[1]
        logits: Logits = out.logits.float().cpu().numpy()
        return logits


class Reference(Transformers):
    """The reference of an engine: a checkpoint in float32, by code that shares as little as possible with exports.

    A plain checkpoint is loaded by transformers itself, so that an error of this project's readers is found. Packed
    weights (`Exact`) and adapters are read here, as transformers would round the former and ignore the latter.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        with CheckpointReader(folder) as reader:
            plain = reader.packing is None and adapter_config.adapter_config(folder) is None
        if not plain:
            super().__init__(folder, device, torch.float32, exact=True)
            return
        place = torch.device(device)
        self._start(load_dense(folder, place, torch.float32).eval(), place)


class Gguf(Transformers):
    """The runtime of a GGUF file that this project wrote: its weights unpacked to float32 in transformers' model."""

    name = "gguf"

    def __init__(self, folder: Path, file: str, device: str = "cpu") -> None:
        from runner.runtime import gguf_model

        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars would mix with the generated text
            model = gguf_model.load(folder, folder / file)
        place = torch.device(device)
        self._start(model.to(place), place)

"""The ranges of keys and values on calibration text, a decoder layer at a time, and the scales that they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from runner.model.checkpoint.quantization.cache_scheme import CacheScheme
from runner.model.layerwise import attention_caches, progress_file
from runner.model.layerwise.attention_caches import Change
from runner.model.layerwise.final_hidden import final_hidden
from runner.model.layerwise.method import Results
from runner.model.layerwise.stream_run import StreamRun
from runner.model.layerwise.streamed_model import StreamedModel


def observe(streamed: StreamedModel, ids: torch.Tensor, scheme: CacheScheme, run: StreamRun) -> Results:
    """The largest absolute keys and values of each attention module, by its name in the checkpoint.

    Of each layer {"layer", "modules": {name: {"keys": [...], "values": [...]}}}, with a number for each head where the
    scheme has scales for them. Keys and values go on as they are: a layer sees those before it with exact caches.
    """
    final_hidden(streamed, ids, run, _Ranges(streamed, scheme))
    return progress_file.load(run.progress, len(streamed)).results


def of_ones(streamed: StreamedModel, scheme: CacheScheme) -> Results:
    """As `observe`, without running the model: what scales of 1 reach."""
    parameters = (name for name, _ in streamed.model.named_parameters())
    stored = {name: streamed.stored_name(name) for name in parameters}
    heads = {each.stored: each.key_heads for each in attention_caches.described(streamed.model, stored) or ()}
    results = []
    for index in range(len(streamed)):
        modules = {}
        for name in _modules(streamed, index):
            reach = [scheme.full_range] * (heads[name] if scheme.per_head else 1)
            modules[name] = {"keys": reach, "values": reach}
        results.append({"layer": index, "modules": modules})
    return results


def scale(largest: Sequence[float], scheme: CacheScheme, dtype: torch.dtype) -> torch.Tensor:
    """The scale [1] or [heads, 1, 1] of keys or values, in `dtype`; 1 where all of them are zero."""
    values = torch.tensor(largest, dtype=torch.float64) / scheme.full_range
    values = torch.where(values > 0, values.clamp_min(torch.finfo(dtype).tiny), 1.0)
    return values.reshape(scheme.scale_shape(len(largest))).to(dtype)


def _modules(streamed: StreamedModel, index: int) -> dict[str, nn.Module]:
    """The attention modules of a layer, by their names in the checkpoint."""
    found = attention_caches.within(streamed.layers[index], streamed.layer_name(index))
    return {attention_caches.stored_name(name, streamed.stored_name): module for name, module in found.items()}


class _Ranges:
    """Watches the keys and values of one layer after another (`final_hidden`)."""

    def __init__(self, streamed: StreamedModel, scheme: CacheScheme) -> None:
        self.streamed, self.scheme = streamed, scheme
        self.seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def attach(self, index: int) -> list[RemovableHandle]:
        self.seen = {}
        return [
            attention_caches.attach(module, self._watch(name))
            for name, module in _modules(self.streamed, index).items()
        ]

    def result(self, index: int) -> dict[str, Any]:
        modules = {name: {"keys": k.tolist(), "values": v.tolist()} for name, (k, v) in sorted(self.seen.items())}
        return {"layer": index, "modules": modules}

    def _watch(self, name: str) -> Change:
        def change(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self._largest(keys), self._largest(values)
            before = self.seen.get(name)
            self.seen[name] = found if before is None else (torch.maximum(before[0], found[0]),
                                                            torch.maximum(before[1], found[1]))  # fmt: skip
            return keys, values

        return change

    def _largest(self, states: torch.Tensor) -> torch.Tensor:
        """float32 [heads] or [1] of states [batch, heads, tokens, columns]; NaN where there is one."""
        largest = states.abs().amax((0, 2, 3)).float()
        return largest if self.scheme.per_head else largest.amax(0, keepdim=True)

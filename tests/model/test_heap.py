"""When freed memory is given back between layers."""

from __future__ import annotations

import pytest

from runner.model import heap, usage


def test_memory_is_given_back_before_the_first_layer_and_once_layers_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([1000, 1030, 1060, 1061, 1061])
    trimmed: list[bool] = []
    monkeypatch.setattr(usage, "peak", lambda: next(peaks))
    monkeypatch.setattr(heap, "trim", lambda: trimmed.append(True))
    layers, counts = heap.Layers(), []
    for _ in range(5):
        layers.ended()
        counts.append((len(trimmed), layers.grows))
    assert counts == [(1, False), (1, False), (1, False), (2, True), (3, True)]

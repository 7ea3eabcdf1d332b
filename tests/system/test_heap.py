"""When freed memory is given back between layers."""

from __future__ import annotations

import pytest

from runner.system import heap, peak_memory


def test_memory_is_given_back_before_the_first_layer_and_once_layers_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([800, 1000, 1040, 1041, 1041, 1056])
    trimmed: list[bool] = []
    monkeypatch.setattr(peak_memory, "peak", lambda: next(peaks))
    monkeypatch.setattr(heap, "trim", lambda: trimmed.append(True))
    layers, counts = heap.Layers(), []
    for _ in range(6):
        layers.ended()
        counts.append((len(trimmed), layers.grows))
    assert counts == [(1, False), (1, False), (1, False), (2, False), (2, False), (3, True)]

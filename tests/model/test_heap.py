"""When freed memory is given back between layers."""

from __future__ import annotations

import sys

import pytest

from runner.model import heap, usage


def test_only_growth_over_the_first_layer_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([1000, 1040, 990, 1051, 1000, 0])
    trimmed: list[bool] = []
    monkeypatch.setattr(usage, "resident", lambda: next(held))
    monkeypatch.setattr(heap, "trim", lambda: trimmed.append(True))
    layers, counts = heap.Layers(), []
    for _ in range(6):
        layers.ended()
        counts.append(len(trimmed))
    assert counts == [0, 0, 0, 1, 1, 2]  # where it is not known what is held, always


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_is_what_the_process_holds() -> None:
    before = usage.resident()
    block = bytearray(b"x") * (64 << 20)
    assert 60 << 20 < usage.resident() - before < 70 << 20
    assert usage.resident() <= usage.peak()
    del block

"""Hidden states on their way from file to file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.model.layerwise.activation_file import Activations
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.streamed_model import StreamedModel
from tests.tiny import save, tokens


def test_lanes_start_from_one_embedding_however_slow_the_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Activations._put

    def slowly(self: Activations, *args: Any) -> None:
        time.sleep(0.05)
        put(self, *args)

    monkeypatch.setattr(Activations, "_put", slowly)
    streamed = StreamedModel(save(tmp_path / "model", "llama"))
    flow = HiddenStates(streamed, tokens(), tmp_path, lanes=2)
    assert flow.begin(0, [])
    first, second = (flow.file(lane, 0).read(0, 6) for lane in (0, 1))
    assert torch.equal(first, second)
    assert flow.finished(0) == [flow.file(0, 0).digest()] * 2

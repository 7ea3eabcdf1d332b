"""Hidden states on their way from file to file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import StepFailed
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_ends_the_stream(tmp_path: Path, bad: float) -> None:
    streamed = StreamedModel(save(tmp_path / "model", "llama"))
    flow = HiddenStates(streamed, tokens(), tmp_path)
    assert flow.begin(0, [])
    lane = flow.lane(0, 0, streamed.load(0))
    hidden = torch.zeros_like(flow.file(0, 0).read(4, 6))
    hidden[1, 0, 3] = bad
    with pytest.raises(StepFailed, match=r"^decoder layer 0 gives NaN or infinity for the windows from 4 on$"):
        lane.write(4, hidden)
    with pytest.raises(StepFailed, match=r"^the embedding gives NaN or infinity for the windows from 0 on$"):
        flow._write(0, 0, 0, hidden)

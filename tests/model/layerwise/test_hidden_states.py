"""Hidden states on their way from file to file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import StepFailed
from runner.model.layerwise import forward_modes
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


def test_a_lane_of_some_batches_is_resumed_from_and_damage_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.model.layerwise.hidden_states.batch_tokens", lambda device, widest: 1)
    streamed = StreamedModel(save(tmp_path / "model", "llama"))
    flow = HiddenStates(streamed, tokens(), tmp_path, lanes=2, every=4)
    assert flow.begin(0, [])
    assert flow.paired == {(0, 1), (4, 5)}
    layer = streamed.load(0)
    for number in (0, 1):
        lane = flow.lane(number, 0, layer)
        forward_modes.finish(lane, [span for span in flow.spans if not number or span in flow.paired])
    digests = flow.finished(1)
    kept = [flow.file(1, 1).read(at, at + 1) for at in (0, 4)]
    assert all(torch.equal(one, flow.file(0, 1).read(at, at + 1)) for one, at in zip(kept, (0, 4), strict=True))
    again = HiddenStates(streamed, tokens(), tmp_path, lanes=2, every=4)
    assert again.begin(1, digests)
    path = tmp_path / "hidden-1-1"
    data = bytearray(path.read_bytes())
    data[4 * len(data) // 6] ^= 1  # in window 4
    path.write_bytes(data)
    assert not HiddenStates(streamed, tokens(), tmp_path, lanes=2, every=4).begin(1, digests)


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

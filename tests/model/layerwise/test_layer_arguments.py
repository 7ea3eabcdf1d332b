"""Arguments of layers that differ between batches, and state that layers share: Gemma 4 has both."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import Interrupted, RecipeError
from runner.model.layerwise.layer_arguments import SCOUT, LayerArguments
from runner.model.layerwise.layer_probes import Call
from runner.steps.kinds import find
from tests.host import Host
from tests.model.layerwise.test_final_hidden import plain_logits, streamed_logits
from tests.model.layerwise.test_outside_layers import save
from tests.tiny import tokens

GEMMA4: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "sliding_window": 8, "max_position_embeddings": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MANY = tokens(windows=130)  # 3,120 tokens: two batches on a CPU, the second one smaller


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("gemma4") / "model", "gemma4_text", GEMMA4)


def test_every_batch_has_its_own(gemma4: Path, tmp_path: Path) -> None:
    ids = tokens(windows=260)
    expected = plain_logits(gemma4, ids, torch.float32)
    torch.testing.assert_close(streamed_logits(gemma4, ids, tmp_path / "scratch"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["evaluate.perplexity", "quantize.gptq"])
def test_an_interrupted_step_ends_with_the_same_result(kind: str, gemma4: Path, tmp_path: Path) -> None:
    params: dict[str, Any] = {"group_size": 8, "asymmetric_calibration": 0.5} if kind == "quantize.gptq" else {}

    def run(folder: Path, stop_after: int | None = None) -> dict[str, Any]:
        host = Host(folder, kind, gemma4, MANY, stop_after, **params)
        metrics = dict(find(kind).run(host).metrics)
        return metrics | {path.name: path.read_bytes() for path in host.out_dir.glob("*.safetensors")}

    straight = run(tmp_path / "straight")
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", stop_after=3)
    assert run(tmp_path / "stopped") == straight


def test_layers_that_share_state_are_not_learned(gemma4: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        find("quantize.signround").run(Host(tmp_path, "quantize.signround", gemma4, MANY, group_size=8))
    [found] = caught.value.diagnostics
    assert (found.code, found.help) == ("R632", "use `quantize.gptq`")
    assert found.message == (
        "Gemma4ForCausalLM has layers that hand one another keys and values: they cannot be learned one at a time"
    )


def test_a_torn_state_starts_again(gemma4: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        find("evaluate.perplexity").run(Host(tmp_path / "a", "evaluate.perplexity", gemma4, MANY, 3))
    (state,) = (tmp_path / "a").rglob("state-*")
    state.write_bytes(state.read_bytes()[:-1])
    host = Host(tmp_path / "a", "evaluate.perplexity", gemma4, MANY)
    found = find("evaluate.perplexity").run(host)
    straight = Host(tmp_path / "b", "evaluate.perplexity", gemma4, MANY)
    assert found.metrics == find("evaluate.perplexity").run(straight).metrics
    assert host.layers() == [1, 2, 3, 4]
    shutil.rmtree(tmp_path / "a")


def calls(scale: float, shared: dict[str, Any]) -> list[Call]:
    table = torch.ones(2)
    return [((table,), {"own": scale * torch.ones(3), "shared": shared, "mask": None}) for _ in range(2)]


def test_equal_arguments_are_stored_once(tmp_path: Path) -> None:
    arguments = LayerArguments(tmp_path, 1)
    arguments.record((0, 4), calls(1, {"a": 1}))
    arguments.record((4, 8), calls(1, {"a": 1}))
    assert list(tmp_path.iterdir()) == []
    arguments.record((8, 12), calls(2, {"a": 1}))
    assert [path.name for path in tmp_path.iterdir()] == ["arguments-8"]
    assert [arguments.call(0, 0, span)[1]["own"][0] for span in ((0, 4), (4, 8), (8, 12))] == [1, 1, 2]
    arguments.drop(0)
    assert arguments.call(0, 1, (8, 12))[1]["own"][0] == 2
    arguments.drop(1)
    assert list(tmp_path.iterdir()) == []


def test_state_belongs_to_a_batch_and_a_lane(tmp_path: Path) -> None:
    arguments = LayerArguments(tmp_path, 2)
    for span in (SCOUT, (0, 4), (4, 8)):
        arguments.record(span, calls(1, {}))
    assert arguments.has_state()
    arguments.call(0, 0, (0, 4))[1]["shared"]["key"] = torch.ones(1)
    assert set(arguments.call(0, 1, (0, 4))[1]["shared"]) == {"key"}
    others = [(1, (0, 4)), (0, (4, 8)), (0, SCOUT)]
    assert all(arguments.call(lane, 1, span)[1]["shared"] == {} for lane, span in others)
    digest = arguments.save_states(tmp_path / "state")
    again = LayerArguments(tmp_path, 2)
    for span in (SCOUT, (0, 4), (4, 8)):
        again.record(span, calls(1, {}))
    assert again.load_states(tmp_path / "state", digest)
    assert set(again.call(0, 1, (0, 4))[1]["shared"]) == {"key"}
    assert not again.load_states(tmp_path / "state", "0" * 64)

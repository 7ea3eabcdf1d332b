"""`transform.rotate`: an ordinary checkpoint with the logits of the original, by transformers' own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Inputs
from runner.errors import Interrupted, StepFailed
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.plan.resolve_inputs import described
from runner.plan.tensor_account import account
from runner.recipe.schema.load import defaults
from runner.steps.kinds import find
from tests.steps.transform.checkpoints import digests, distance, logits, save, step
from tests.tiny import tokens

ROTATE: Any = find("transform.rotate")
HADAMARD_HELP = "use `matrix: orthogonal`, a random rotation, or a `block_size` that is a power of 2"
RESIDUAL_HELP = "set `residual: false`, which leaves the rotation of heads"


def ties(found: CheckpointFacts) -> dict[str, str]:
    assert found.description is not None
    return dict(found.description.ties or {})


def complaints(folder: Path, **params: Any) -> list[tuple[str, str, str]]:
    inputs = Inputs(described(facts(folder, "m"), folder), {}, {}, machine_facts("cpu"))
    found = ROTATE.check(defaults("transform.rotate", params), inputs)
    return [(d.code, d.message, d.help) for d in found]


OTHERS = ("qwen2", "qwen3", "phi3", "opt", "gpt_neox", "phi", "mpt", "nemotron", "granite", "bitnet")


@pytest.mark.parametrize(
    "name",
    [
        "llama", "llama_tied", "gemma",  # RMSNorm; of gemma 1 + w and a scaled embedding
        "gpt2",  # LayerNorm: the mean of channels must stay
        "cohere",  # blocks side by side
        "minicpm3",  # norms inside its blocks, which read no hidden states
        *(pytest.param(name, marks=pytest.mark.nightly) for name in OTHERS),
    ],
)  # fmt: skip
def test_the_logits_stay(name: str, tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", name), tokens()
    host = step(tmp_path / "step", "transform.rotate", folder)
    result = ROTATE.run(host)
    assert complaints(folder) == []
    assert distance(logits(folder, ids), logits(host.out_dir, ids)) < 1e-5
    assert result.metrics["divergence"] < 1e-5
    before, after = (load_file(path / "model.safetensors") for path in (folder, host.out_dir))
    embedding = next(key for key in before if key.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")))
    assert not torch.allclose(before[embedding], after[embedding], atol=0.1)


@pytest.mark.parametrize("params", [{"matrix": "orthogonal"}, {"block_size": 8}, {"heads": False}, {"residual": False}])
@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_every_way_keeps_the_logits(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", name), tokens()
    host = step(tmp_path / "step", "transform.rotate", folder, **params)
    ROTATE.run(host)
    assert distance(logits(folder, ids), logits(host.out_dir, ids)) < 1e-5


def test_the_residual_stream_is_the_original_times_a_hadamard_matrix(tmp_path: Path) -> None:
    """Orthogonal, with entries of one size: every embedding is an even mix of all its channels."""
    folder = save(tmp_path / "model", "llama")
    host = step(tmp_path / "step", "transform.rotate", folder)
    ROTATE.run(host)
    before, after = (load_file(path / "model.safetensors") for path in (folder, host.out_dir))
    name = "model.embed_tokens.weight"
    turn = torch.linalg.lstsq(before[name].double(), after[name].double()).solution
    torch.testing.assert_close(turn.abs(), torch.full_like(turn, 32**-0.5), rtol=0, atol=1e-5)
    norms = [after[key] for key in after if "norm" in key]
    assert all(torch.equal(norm, torch.ones_like(norm)) for norm in norms)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_heads_rotate_where_the_stream_cannot(name: str, tmp_path: Path) -> None:
    folder, ids = save(tmp_path / "model", name), tokens()
    norm = "model.layers.0.post_feedforward_layernorm.weight"
    [(code, message, help)] = complaints(folder)
    assert (code, help) == ("R623", RESIDUAL_HELP)
    assert message == (
        f"the residual stream of `m` (`{name}`) cannot be rotated: the model multiplies what its blocks give by the "
        f"weight of a norm, `{norm}`, before it is added"
    )
    host = step(tmp_path / "step", "transform.rotate", folder, residual=False)
    result = ROTATE.run(host)
    assert complaints(folder, residual=False) == []
    assert distance(logits(folder, ids), logits(host.out_dir, ids)) < 1e-5
    assert {s.rpartition(".")[2] for s in result.details["layers"][0]["modules"]} == {"v_proj", "o_proj"}


def test_a_stream_that_cannot_be_rotated_fails_the_step_too(tmp_path: Path) -> None:
    """Whatever the planner overlooks, the first layer shows."""
    folder = save(tmp_path / "model", "gemma2")
    with pytest.raises(StepFailed) as caught:
        ROTATE.run(step(tmp_path / "step", "transform.rotate", folder))
    assert str(caught.value) == (
        "the residual stream of `model.layers.0` cannot be rotated: `post_feedforward_layernorm`, which no linear "
        "module reads, is in the way"
    )
    assert caught.value.help == RESIDUAL_HELP


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("bloom", "has a norm between its embeddings and its layers, `transformer.word_embeddings_layernorm.weight`"),
        ("olmo", "has no norm with a weight in its layers"),
    ],
)
def test_other_norms_are_refused_by_name(name: str, what: str, tmp_path: Path) -> None:
    message = f"the residual stream of `m` (`{name}`) cannot be rotated: the model {what}"
    assert complaints(save(tmp_path / "model", name)) == [("R623", message, RESIDUAL_HELP)]


def test_sizes_without_a_rotation_are_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 52, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    folder = save(tmp_path / "model", "llama", **sizes)
    message = "no Hadamard matrix of order 52 can be made by Sylvester's and Paley's constructions"
    assert complaints(folder) == [("R622", message, HADAMARD_HELP)]
    message = "blocks of 32 channels do not divide the hidden size 52 of `m`"
    assert complaints(folder, block_size=32) == [("R622", message, "choose a divisor of 52")]
    assert complaints(folder, matrix="orthogonal") == []
    host = step(tmp_path / "step", "transform.rotate", folder, matrix="orthogonal")
    ROTATE.run(host)
    assert distance(logits(folder, tokens()), logits(host.out_dir, tokens())) < 1e-5


def test_nothing_to_rotate_is_a_warning(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    message = "`residual` and `heads` are both false: this step changes nothing"
    assert complaints(folder, residual=False, heads=False) == [("R418", message, "leave the step out")]


def test_embeddings_and_head_get_a_tensor_each(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama_tied", torch.bfloat16)
    host = step(tmp_path / "step", "transform.rotate", folder)
    result = ROTATE.run(host)
    after = load_file(host.out_dir / "model.safetensors")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert after["lm_head.weight"].dtype == torch.bfloat16
    assert json.loads((host.out_dir / "config.json").read_text())["tie_word_embeddings"] is False
    given = Inputs(described(facts(folder, "m"), folder), {}, {}, machine_facts("cpu"))
    planned = ROTATE.outcome(host.params, given)
    assert {name: header.shape for name, header in planned.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in after.items()
    }
    found, complaints = account(
        given.checkpoint, planned, ROTATE.changes(host.params, given), ROTATE.adds(host.params, given)
    )
    assert complaints == []
    [head] = [entry for entry in found.entries if entry.name == "lm_head.weight"]
    assert (head.fate, head.reason) == ("added", "it no longer shares `model.embed_tokens.weight`")
    assert result.account is not None
    assert set(result.account.fates["model.embed_tokens.weight"].names) == {
        "lm_head.weight", "model.embed_tokens.weight",
    }  # fmt: skip
    # A later step sees the head as what it is.
    again = Inputs(planned, {}, {}, machine_facts("cpu"))
    assert ROTATE.outcome(host.params, again) == planned
    assert ties(described(facts(host.out_dir, "m"), host.out_dir)) == {} == ties(planned)


def test_a_rewrite_without_effect_says_so(tmp_path: Path) -> None:
    """Gemma 4 has a norm on values, which no rotation passes."""
    host = step(tmp_path / "step", "transform.rotate", save(tmp_path / "model", "gemma4_text"), residual=False)
    ROTATE.run(host)
    assert [event["text"] for event in host.events if event["event"] == "message"] == [
        "no layer has a place where this rewrite keeps what it computes: every weight is as it was"
    ]


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama_tied", torch.bfloat16)
    whole = step(tmp_path / "whole", "transform.rotate", folder)
    ROTATE.run(whole)
    stopped = step(tmp_path / "stopped", "transform.rotate", folder, stop_after=2)
    with pytest.raises(Interrupted):
        ROTATE.run(stopped)
    again = step(tmp_path / "stopped", "transform.rotate", folder)
    ROTATE.run(again)
    assert again.layers() == [3]
    assert digests(whole.out_dir) == digests(again.out_dir)


def test_another_seed_gives_another_rotation(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    hosts = [step(tmp_path / str(seed), "transform.rotate", folder) for seed in range(2)]
    for seed, host in enumerate(hosts):
        host.seed = seed
        ROTATE.run(host)
    one, other = (load_file(host.out_dir / "model.safetensors") for host in hosts)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])

"""Training in one process: against a plain float64 loop, through interruptions and kills, to the best state."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from runner.errors import Interrupted, MachineError, RecipeError, StepFailed
from runner.training.run import fit
from runner.training.sampler import order
from runner.training.task import Fitted
from tests import tiny
from tests.training import plain


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "llama")


def trained(folder: Path, model: Path, **options: Any) -> tuple[plain.Caller, Fitted]:
    ctx = plain.Caller(folder)
    return ctx, fit(ctx, plain.task(ctx, model, **options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Fitted:
    """A training with evaluations that nothing interrupted, and whose last state is the best."""
    _, found = trained(tmp_path_factory.mktemp("whole"), model, evaluated=True)
    assert found.details["kept"] == 12
    return found


def reference(model: Path, steps: int) -> dict[str, torch.Tensor]:
    """The training of plain.PARAMS written out in float64: AdamW (Loshchilov & Hutter 2019, algorithm 2) and cosine."""
    from transformers import AutoModelForCausalLM

    net: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    ids = tiny.tokens(20, 16)
    rows = order(20, steps * 4, 3).view(steps, 4)
    named = dict(net.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in named.items()}
    second = {name: torch.zeros_like(p) for name, p in named.items()}
    for step in range(steps):
        rate = 1e-2 * (step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (steps - 2))))
        batch = ids[rows[step]]
        logits = net(input_ids=batch).logits[:, :-1]
        functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in named.values()))
        with torch.no_grad():
            for name, p in named.items():
                gradient = p.grad * min(1.0, 1.0 / (norm + 1e-6))
                first[name].mul_(0.9).add_(0.1 * gradient)
                second[name].mul_(0.999).add_(0.001 * gradient.square())
                decay = 0.0 if "norm" in name else 0.01
                mean = first[name] / (1 - 0.9 ** (step + 1))
                root = (second[name] / (1 - 0.999 ** (step + 1))).sqrt()
                p.sub_(rate * (mean / (root + 1e-8) + decay * p))
                p.grad = None
    return {name: p.detach() for name, p in named.items()}


def test_the_weights_are_those_of_a_plain_loop_in_float64(tmp_path: Path, model: Path) -> None:
    ctx, found = trained(tmp_path, model)
    weights = load_file(found.weights)
    expected = reference(model, 12)
    assert set(weights) == set(expected)
    for name, tensor in weights.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), expected[name], atol=2e-4, rtol=1e-3)
    assert found.metrics["steps"] == 12
    assert found.metrics["tokens"] == 12 * 4 * 16
    assert [event["at"] for event in ctx.events] == list(range(1, 13))
    last = ctx.events[-1]
    assert (last["event"], last["of"], last["evaluation"], last["seconds_left"]) == ("train", 12, None, 0.0)
    assert last["parts"]["double"] == pytest.approx(2 * last["loss"])
    assert last["memory"] > 10**8
    assert [point["step"] for point in found.details["curve"]] == list(range(1, 13))
    assert sorted(path.name for path in found.weights.parent.iterdir()) == [
        "data.npy", "fitted.json", "weights.safetensors",
    ]  # fmt: skip


def test_what_is_finished_is_not_trained_again(tmp_path: Path, model: Path) -> None:
    _, first = trained(tmp_path, model)
    ctx, again = trained(tmp_path, model)
    assert (ctx.events, again) == ([], first)
    assert trained(tmp_path, model, steps=3)[1].metrics["steps"] == 3, "another training is another result"


@pytest.mark.nightly
def test_accumulation_and_checkpointed_activations_change_no_more_than_rounding(tmp_path: Path, model: Path) -> None:
    _, one = trained(tmp_path / "one", model)
    _, many = trained(tmp_path / "many", model, accumulation=4, gradient_checkpointing=True)
    expected, found = load_file(one.weights), load_file(many.weights)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-4, rtol=1e-3)
    assert many.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-4)


def test_only_what_takes_a_gradient_is_trained_saved_and_given_back(tmp_path: Path, model: Path) -> None:
    options: dict[str, Any] = {"arguments": {"only": "q_proj.weight"}}
    ctx = plain.Caller(tmp_path, stop_at=6)
    with pytest.raises(Interrupted):
        fit(ctx, plain.task(ctx, model, **options))
    names = {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)}
    saved = ctx.scratch_dir / "training" / "checkpoint-00000006" / "trained.safetensors"
    assert set(load_file(saved)) == names
    assert set(load_file(trained(tmp_path, model, **options)[1].weights)) == names


def test_nothing_to_train(tmp_path: Path, model: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        trained(tmp_path, model, arguments={"only": "no such name"})
    assert caught.value.render() == "error: nothing is left to train: no parameter of the model takes a gradient"


# 4 is the step of a checkpoint and of an evaluation.
@pytest.mark.parametrize("stop_at", [4, *(pytest.param(step, marks=pytest.mark.nightly) for step in (1, 7))])
def test_an_interrupted_training_ends_with_the_same_bytes(
    tmp_path: Path, model: Path, whole: Fitted, stop_at: int
) -> None:
    ctx = plain.Caller(tmp_path, stop_at=stop_at)
    with pytest.raises(Interrupted):
        fit(ctx, plain.task(ctx, model, evaluated=True))
    assert ctx.events[-1]["at"] == stop_at
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress == {"layer": stop_at, "layers": 12, "unit": "step"}
    ctx, found = trained(tmp_path, model, evaluated=True)
    assert ctx.events[0]["at"] == stop_at + 1
    assert found.weights.read_bytes() == whole.weights.read_bytes()
    assert found.details == whole.details


def test_dropout_goes_on_where_it_was(tmp_path: Path) -> None:
    gpt2 = tiny.save(tmp_path / "gpt2", "gpt2")
    _, expected = trained(tmp_path / "whole", gpt2)
    ctx = plain.Caller(tmp_path / "cut", stop_at=7)
    with pytest.raises(Interrupted):
        fit(ctx, plain.task(ctx, gpt2))
    assert trained(tmp_path / "cut", gpt2)[1].weights.read_bytes() == expected.weights.read_bytes()


@pytest.mark.nightly  # a kill of a training is in test_kills.py
@pytest.mark.parametrize(
    ("kill_at", "sealing", "first"),
    [
        pytest.param("8", "telling", 6, id="between checkpoints"),
        pytest.param("10", "sealing", 6, id="before a checkpoint counts"),
    ],
)
def test_a_killed_training_ends_with_the_same_bytes(
    tmp_path: Path, model: Path, whole: Fitted, kill_at: str, sealing: str, first: int
) -> None:
    command = [sys.executable, "-m", "tests.training.plain", str(tmp_path), str(model), kill_at, sealing]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    ctx, found = trained(tmp_path, model, evaluated=True)
    assert ctx.events[0]["at"] == first
    assert found.weights.read_bytes() == whole.weights.read_bytes()
    assert found.details == whole.details


def test_the_best_evaluated_state_is_kept(tmp_path: Path, model: Path) -> None:
    """A rate so high that the model is worse after training than before it: the weights are those of the beginning."""
    from transformers import AutoModelForCausalLM

    ctx, found = trained(tmp_path, model, evaluated=True, learning_rate=3.0)
    losses = {entry["step"]: entry["loss"] for entry in found.details["evaluations"]}
    assert list(losses) == [0, 4, 8, 12]
    assert found.details["kept"] == 0
    assert found.metrics["evaluation_loss"] == losses[0] == min(losses.values())
    net: Any = AutoModelForCausalLM.from_pretrained(model)
    for name, tensor in load_file(found.weights).items():
        assert torch.equal(tensor, net.get_parameter(name))
    ids = ctx.data("evaluation")
    logits = net(input_ids=ids).logits[:, :-1].detach().double()
    expected = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)
    assert [event["evaluation"] for event in ctx.events if event["evaluation"] is not None] == list(losses.values())[1:]


def test_patience_ends_a_training_that_gets_no_better(tmp_path: Path, model: Path) -> None:
    options: dict[str, Any] = {"evaluated": True, "learning_rate": 3.0, "patience": 2, "evaluate_every": 1}
    _, found = trained(tmp_path, model, **options)
    losses = [entry["loss"] for entry in found.details["evaluations"]]
    best = losses.index(min(losses))
    assert len(losses) == best + 3
    assert found.metrics["steps"] == best + 2 < 12
    assert found.details["kept"] == best
    assert found.details["curve"][-1]["step"] == best + 2


def test_a_loss_that_is_no_number_stops_at_once(tmp_path: Path, model: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        trained(tmp_path, model, arguments={"poison": 7})
    kept = tmp_path / "scratch" / "training" / "checkpoint-00000005"
    assert caught.value.render() == (
        "error: the loss is NaN at step 7 of 12, with learning rate 0.00655; "
        f"the last good state is {kept}\n"
        "help: lower `learning_rate` (now 0.01); lower `max_grad_norm` (now 1)"
    )
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "trained.safetensors").values())


def test_a_first_loss_that_is_no_number(tmp_path: Path, model: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        trained(tmp_path, model, arguments={"poison": 1}, warmup_steps=0, precision="bf16")
    assert caught.value.render() == (
        "error: the loss is NaN at step 1 of 12, with learning rate 0.01; no state was saved before it\n"
        "help: lower `learning_rate` (now 0.01); lower `max_grad_norm` (now 1); raise `warmup` (now 0 of 12 steps); "
        "set `precision: fp32` (now bf16)"
    )


def test_memory_that_runs_out_names_what_to_lower(tmp_path: Path, model: Path) -> None:
    with pytest.raises(MachineError) as caught:
        trained(tmp_path, model, arguments={"hungry": 3}, accumulation=2)
    assert caught.value.message.startswith("memory ran out while training at step 3 of 12: ")
    assert "can't allocate memory" in caught.value.message
    assert caught.value.help == (
        "raise `gradient_accumulation` (now 2: 2 windows in a forward) or lower `batch_size` (now 4); "
        "set `gradient_checkpointing: true` (now false); lower `sequence_length` of the data (now 16); "
        "or use a machine with more memory"
    )


def test_bf16_computes_in_bf16_and_keeps_float32(tmp_path: Path, model: Path) -> None:
    _, exact = trained(tmp_path / "fp32", model)
    _, found = trained(tmp_path / "bf16", model, precision="bf16")
    assert all(tensor.dtype == torch.float32 for tensor in load_file(found.weights).values())
    assert found.metrics["loss"] != exact.metrics["loss"]
    assert found.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=0.02)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (
            0,
            (
                "error[R464]: `data` has no full window of text to train on\n"
                "help: use a longer text, or lower its `sequence_length`"
            ),
        ),
        (
            3,
            (
                "error[R482]: `batch_size` is 4, but the data has 3 windows: a batch would hold the same text twice\n"
                "help: use a `batch_size` of at most 3, more text, or more `samples` of it"
            ),
        ),
    ],
)
def test_too_little_text(
    tmp_path: Path, model: Path, windows: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain.Caller, "data", lambda self, name: tiny.tokens(20, 16)[:windows])
    with pytest.raises(RecipeError) as caught:
        trained(tmp_path, model)
    assert caught.value.render() == message

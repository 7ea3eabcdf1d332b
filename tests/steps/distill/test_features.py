"""`distill.features`: hidden states and attention maps come nearer to the teacher's; widths may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.errors import Interrupted, RecipeError
from runner.runtime.transformers import Transformers
from runner.steps.distill import features
from runner.steps.kinds import find
from runner.training import losses
from runner.training.objectives import features as training
from runner.training.objectives.features import Matching
from runner.training.task import Batch
from tests.host import Host
from tests.steps.distill.training import Stopping, digests, kl, model_of
from tests.tiny import save, tokens
from tests.training import recovering

TRAINING: dict[str, Any] = {"batch_size": 4, "steps": 30, "learning_rate": 2e-3, "precision": "fp32"}
IDS = tokens(windows=16)


def host(tmp_path: Path, teacher: Path, own: Path | None = None, cls: type[Host] = Host, **params: Any) -> Host:
    settings = TRAINING | params
    return cls(tmp_path, "distill.features", own or teacher, IDS, others={"teacher": teacher}, **settings)


def trainable(student: Path, teacher: Path, **changes: Any) -> Matching:
    arguments: dict[str, Any] = {
        "student": str(student), "teacher": str(teacher), "pairs": [[0, 0], [2, 2]], "hidden_weight": 1.0,
        "attention_weight": 0.0, "logits_weight": 1.0, "alpha": 0.1, "temperature": 2.0, "divergence": "forward",
        "seed": 0,
    }  # fmt: skip
    return training.build(arguments | changes, "cpu")


def states(folder: Path) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
    """What every decoder layer of a model gives, and its attention probabilities."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, given, output: found.append(output))
    with torch.no_grad():
        maps = model(input_ids=IDS, output_attentions=True).attentions
    return found, maps


def test_a_cut_student_ends_nearer_inside_and_outside(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama")
    student = {"layers": [0, 2]}
    result = features.run(host(tmp_path, teacher, student=student))
    out = tmp_path / "out"
    assert result.details["pairs"] == [(0, 0), (1, 2)]
    assert result.details["kept_layers"] == [0, 2]
    assert result.metrics["steps"] == 30
    assert model_of(out).config.num_hidden_layers == 2
    cut = tmp_path / "scratch" / "student"
    theirs = states(teacher)[0]
    before, after = (losses.hidden_distance(states(folder)[0][1], theirs[2]) for folder in (cut, out))
    assert after < 0.7 * before
    assert kl(teacher, out, IDS) < 0.7 * kl(teacher, cut, IDS)
    assert "hidden" in result.details["curve"][0]["parts"]


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "nvfp4"])
def test_a_quantized_teacher_computes_what_is_measured_of_it(scheme: str, tmp_path: Path) -> None:
    """Its inputs are rounded too."""
    dense = save(tmp_path / "dense", "llama")
    group: dict[str, Any] = {"group_size": 32} if scheme == "w4a16" else {}
    quantized = Host(tmp_path / "rtn", "quantize.rtn", dense, tokens(), scheme=scheme, **group)
    find("quantize.rtn").run(quantized)
    teacher = trainable(dense, quantized.out_dir).teacher
    expected = Transformers(quantized.out_dir, dtype=torch.float32).prefill(IDS.numpy())
    assert torch.equal(teacher(IDS).logits, torch.from_numpy(expected))
    assert abs(expected - Transformers(dense, dtype=torch.float32).prefill(IDS.numpy())).max() > 0.1


def test_the_adapter_of_a_teacher_acts(tmp_path: Path) -> None:
    dense, packed = recovering.quantized(tmp_path)
    settings: dict[str, Any] = {"loss": "next_token", "rank": 4, "steps": 4, "batch_size": 4, "learning_rate": 0.02}
    adapted = Host(tmp_path / "lora", "recover.lora", packed, IDS, precision="fp32", **settings)
    find("recover.lora").run(adapted)
    logits = {
        folder: trainable(dense, folder, pairs=[[0, 0]]).teacher(IDS).logits for folder in (packed, adapted.out_dir)
    }
    expected = recovering.plain(adapted.out_dir, adapter=True)(IDS).logits
    torch.testing.assert_close(logits[adapted.out_dir], expected, rtol=1e-4, atol=1e-4)
    assert (logits[packed] - expected).abs().max() > 1e-2


def test_attention_maps_come_nearer(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama")
    only: dict[str, Any] = {"hidden_weight": 0.0, "logits_weight": 0.0, "attention_weight": 1.0}
    features.run(host(tmp_path, teacher, student={"layers": [1, 2]}, layers=[{"student": 1, "teacher": 2}], **only))
    theirs = states(teacher)[1]
    cut, out = (states(folder)[1] for folder in (tmp_path / "scratch" / "student", tmp_path / "out"))
    assert losses.attention_distance(out[1], theirs[2]) < 0.7 * losses.attention_distance(cut[1], theirs[2])


def test_a_narrower_student_learns_through_projections_that_are_dropped(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama")
    narrow = save(tmp_path / "narrow", "llama", hidden_size=16, num_hidden_layers=2)
    result = features.run(host(tmp_path, teacher, narrow))
    out = tmp_path / "out"
    assert result.details["pairs"] == [(0, 1), (1, 2)]
    assert load_file(out / "model.safetensors").keys() == load_file(narrow / "model.safetensors").keys()
    assert kl(teacher, out, IDS) < 0.9 * kl(teacher, narrow, IDS)
    curve = [point["parts"]["hidden"] for point in result.details["curve"]]
    assert curve[-1] < 0.95 * curve[0]


def test_the_parts_are_weighted(tmp_path: Path) -> None:
    """One loss against its parts made by hand of the models' own outputs."""
    teacher = save(tmp_path / "teacher", "llama")
    student = save(tmp_path / "student", "llama", rms_norm_eps=0.5)
    made = trainable(student, teacher, hidden_weight=3.0, attention_weight=5.0, logits_weight=0.5)
    loss, parts = made.loss(made.model, Batch(IDS, torch.arange(16)))
    (ours, our_maps), (theirs, their_maps) = states(student), states(teacher)
    hidden = sum(float(losses.hidden_distance(ours[i], theirs[i])) for i in (0, 2)) / 2
    maps = sum(float(losses.attention_distance(our_maps[i], their_maps[i])) for i in (0, 2)) / 2
    with torch.no_grad():
        logits, known = (model_of(folder)(input_ids=IDS).logits for folder in (student, teacher))
    mixed, hard, soft = (float(part) for part in losses.mixed(logits, IDS, known[:, :-1], made.mix))
    assert float(loss.detach()) == pytest.approx(3 * hidden + 5 * maps + 0.5 * mixed, rel=1e-4)
    expected = {"hidden": hidden, "attention": maps, "text": hard, "teacher": soft}
    assert {name: float(part.detach()) for name, part in parts.items()} == pytest.approx(expected, rel=1e-4)
    assert not any(parameter.requires_grad for parameter in made.teacher.parameters())


def test_activation_checkpoints_change_no_gradient(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama")
    narrow = save(tmp_path / "narrow", "llama", hidden_size=16)
    gradients = []
    for checkpoints in (False, True):
        made = trainable(narrow, teacher)
        made.model.train()
        if checkpoints:
            made.model.activation_checkpointing_enable({"use_reentrant": False})
        made.loss(made.model, Batch(IDS, torch.arange(16)))[0].backward()
        gradients.append({name: parameter.grad for name, parameter in made.model.named_parameters()})
    assert any(name.startswith(training.PROJECTIONS) for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_projections_keep_the_length_of_a_state_and_depend_on_the_seed_alone() -> None:
    made, again, other = (training.projections([0, 3], 256, 512, seed) for seed in (1, 1, 2))
    state = torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    ratio = made["3"](state).detach().square().mean() / state.square().mean()
    assert float(ratio) == pytest.approx(1, abs=0.05)
    first, same, another = (each.get_parameter("0.weight") for each in (made, again, other))
    assert torch.equal(first, same)
    assert not torch.equal(first, another)
    assert not torch.equal(first, made.get_parameter("3.weight"))


@pytest.mark.nightly
def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", "llama")
    narrow = save(tmp_path / "narrow", "llama", hidden_size=16)
    features.run(host(tmp_path / "whole", teacher, narrow, steps=6))
    with pytest.raises(Interrupted):
        features.run(host(tmp_path, teacher, narrow, cls=Stopping.after(train=3), steps=6))
    features.run(host(tmp_path, teacher, narrow, steps=6))
    assert digests(tmp_path / "out") == digests(tmp_path / "whole" / "out")


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_architectures_that_return_attention(name: str, tmp_path: Path) -> None:
    training.require_attention(save(tmp_path / "model", name), "teacher")


def test_an_architecture_that_does_not_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import MambaConfig

    MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path / "mamba")
    with pytest.raises(RecipeError) as caught:
        training.require_attention(tmp_path / "mamba", "student")
    assert caught.value.render() == (
        "error[R493]: the student (`MambaForCausalLM`) does not return its attention probabilities\n"
        "help: set `attention_weight` to 0"
    )
    monkeypatch.setattr(training, "_attention", lambda model, mask: 0)
    with pytest.raises(RecipeError):
        features.run(host(tmp_path, save(tmp_path / "teacher", "llama"), attention_weight=1.0))
    assert not (tmp_path / "scratch" / "training").exists()

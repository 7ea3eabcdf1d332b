"""Adapters: merged weights compute what the branches computed, zeros stay zeros, gradients against autograd."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runner.model.checkpoint import adapter_config
from runner.model.checkpoint.quantization.scheme import integers
from runner.training.load_model import load
from runner.training.modules import lora, lora_math
from runner.training.modules.packed_linear import PackedLinear
from tests.model.packed import PACK_QUANTIZED, make
from tests.tiny import save, tokens

VARIANTS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}


def wrapped(model: Any, variant: str = "lora", dropout: float = 0.0, **options: Any) -> Any:
    torch.manual_seed(7)
    config = adapter_config.config(
        4, 8, ["q_proj", "o_proj", "down_proj"], dropout=dropout, **VARIANTS[variant]  # type: ignore[arg-type]
    )  # fmt: skip
    found = lora.wrap(model, config, **options)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return found


def pruned(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint whose linears are 2:4."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(save(folder.with_name("dense"), dtype=dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                smallest = parameter.view(parameter.shape[0], -1, 4).float().abs().argsort(-1)[..., :2]
                parameter.view(parameter.shape[0], -1, 4).scatter_(-1, smallest, -0.0)
    model.save_pretrained(folder)
    return folder


def merge_all(model: Any) -> dict[str, torch.Tensor]:
    """Every adapted weight merged by `lora_math`, by module name."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    tensors = dict(lora.exported(trained))
    config = model.peft_config["default"].to_dict()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, lora.Branch):
            short = name.removeprefix(adapter_config.PREFIX)
            a, b = tensors[f"{short}.lora_A.weight"], tensors[f"{short}.lora_B.weight"]
            magnitude = tensors.get(f"{short}.lora_magnitude_vector")
            scale = adapter_config.scaling(config, short, a.shape[0])
            found[short] = lora_math.merged(module.base_weight(), a, b, scale, magnitude, masked=module.masked)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("held", [False, True], ids=["dense", "pruned"])
def test_merged_weights_compute_what_the_branches_did(variant: str, held: bool, tmp_path: Path) -> None:
    """In float64; and the zeros of a 2:4 checkpoint keep their bits."""
    folder = pruned(tmp_path / "model") if held else save(tmp_path / "model")
    plain = load(folder, "cpu", torch.float64)
    before = {n: p.detach().clone() for n, p in plain.named_parameters()}
    model = wrapped(load(folder, "cpu", torch.float64), variant).double().eval()
    ids = tokens(2, 12)
    with torch.no_grad():
        unmerged = model(ids).logits
        assert not torch.allclose(unmerged, plain(ids).logits, atol=1e-2)
        weights = merge_all(model)
        assert len(weights) == 9
        for name, weight in weights.items():
            plain.get_submodule(name).weight.copy_(weight)
        torch.testing.assert_close(plain(ids).logits, unmerged, rtol=1e-10, atol=1e-10)
    for name, weight in weights.items():
        old = before[f"{name}.weight"]
        zeros = old == 0
        assert int(zeros.sum()) == (old.numel() // 2 if held else 0)
        assert torch.equal(weight[zeros].view(torch.int64), old[zeros].view(torch.int64))
        assert int((weight == 0).sum()) == int(zeros.sum())


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_rounds_once_to_the_stored_type(variant: str) -> None:
    torch.manual_seed(1)
    weight, a, b = torch.randn(8, 16).bfloat16(), torch.randn(2, 16), torch.randn(8, 2)
    magnitude = torch.rand(8) if variant == "dora" else None
    exact = weight.double() + 0.5 * b.double() @ a.double()
    if magnitude is not None:
        exact = magnitude.double()[:, None] * exact / exact.square().sum(1, keepdim=True).sqrt()
    merged = lora_math.merged(weight, a, b, 0.5, magnitude)
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged, exact.bfloat16(), rtol=2**-8, atol=0)
    assert (merged != exact.bfloat16()).sum() <= 1


def test_scaling() -> None:
    assert adapter_config.scaling(adapter_config.config(16, 32, ["*"]), "model.q", 16) == 2
    assert adapter_config.scaling(adapter_config.config(16, 32, ["*"], rslora=True), "model.q", 16) == 8
    own = {**adapter_config.config(16, 32, ["*"]), "alpha_pattern": {"q": 8}}
    assert adapter_config.scaling(own, "model.q", 4) == 2
    assert adapter_config.scaling(own, "model.k", 4) == 8


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradients_of_a_branch(masked: bool) -> None:
    """Against autograd through the dense product, in float64."""
    torch.manual_seed(2)
    weight = torch.randn(6, 8, dtype=torch.float64)
    weight[weight.abs() < 0.5] = 0
    x, a, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 5, 8), (2, 8), (6, 2)))
    upstream = torch.randn(3, 5, 6, dtype=torch.float64)
    mask = (weight != 0).double() if masked else torch.ones_like(weight)
    expected = torch.autograd.grad(x @ (mask * (weight + 0.7 * b @ a)).T, (x, a, b), upstream)
    y = lora_math.product(x, a, b, 0.7, masked, lambda: weight)
    for found, reference in zip(torch.autograd.grad(y, (x, a, b), upstream), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_adapters_are_trained_in_float32(variant: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make(folder, PACK_QUANTIZED, lambda _: integers(4, 16, True))
    model = wrapped(load(folder, "cpu", torch.bfloat16), variant)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    kinds = 3 if variant == "dora" else 2
    assert len(trained) == 2 * 3 * kinds
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all("lora_" in name for name in trained)
    assert sum(isinstance(m, PackedLinear) for m in model.modules()) == 14
    model(tokens(2, 8)).logits.float().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained.values())


def test_a_fresh_adapter_changes_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    config = adapter_config.config(4, 8, ["q_proj"], dora=True)
    ids = tokens(2, 8)
    with torch.no_grad():
        expected = load(folder, "cpu", torch.float32)(ids).logits
        found = lora.wrap(load(folder, "cpu", torch.float32), config)(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_over_a_mask_is_peft_s(variant: str, tmp_path: Path) -> None:
    """With a mask of no effect the branch computes what peft's own module does, dropout included."""
    folder = save(tmp_path / "model")
    model = wrapped(load(folder, "cpu", torch.float32), variant, dropout=0.5).train()
    ids = tokens(2, 8)
    torch.manual_seed(5)
    expected = model(ids).logits
    for module in model.modules():
        if isinstance(module, lora.Branch):
            module.masked = True
    torch.manual_seed(5)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_dora_with_dropout_over_packed_weights_keeps_none_of_them_dense(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make(folder, PACK_QUANTIZED, lambda _: integers(4, 16, True), vocab_size=80)
    model = wrapped(load(folder, "cpu", torch.float32), "dora", dropout=0.1).train()
    shapes: set[tuple[int, ...]] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens(2, 8, 80)).logits.sum().backward()
    assert not shapes & {(64, 64), (64, 96), (96, 64)}


def test_conv1d_modules_are_merged_in_their_orientation(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "gpt2")
    model = load(folder, "cpu", torch.float64)
    assert lora.transposed(model)
    torch.manual_seed(7)
    adapted = lora.wrap(model, adapter_config.config(4, 8, ["c_attn", "c_fc"], transposed=True)).double().eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        plain = load(folder, "cpu", torch.float64)
        for name, weight in merge_all(adapted).items():
            plain.get_submodule(name).weight.copy_(weight.T)
        ids = tokens(2, 8)
        torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, rtol=1e-9, atol=1e-9)


def test_which_weights_are_pruned() -> None:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(32, 64, generator=generator)
    half = dense * (torch.rand(32, 64, generator=generator) < 0.5)
    row = dense.clone()
    row[3] = 0
    assert [lora_math.is_pruned(w) for w in (dense, half, row)] == [False, True, True]
    rounded = (dense / 0.8).round()  # as 3 bits do: a third becomes zero
    assert 0.25 < float((rounded == 0).float().mean()) < 0.4
    assert not lora_math.is_pruned(rounded, 3)
    assert lora_math.is_pruned(half, 4)
    assert not lora_math.is_pruned(dense, 4)
    two_of_four = nn.functional.pad(dense.view(32, 32, 2), (0, 2)).reshape(32, 128)
    assert lora_math.is_pruned(two_of_four, 2)
    assert math.isclose(float((two_of_four == 0).float().mean()), 0.5)

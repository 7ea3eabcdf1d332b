"""Linear modules that stay packed: the same weights as `Quantized.dequantize`, and gradients against float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from runner.errors import StepFailed
from runner.model.checkpoint.quantization.scheme import Scheme, integers
from runner.model.checkpoint.reader import CheckpointReader
from runner.training.load_model import load
from runner.training.modules.packed_linear import Packed, PackedLinear, read
from tests.model.packed import GPTQ, PACK_QUANTIZED, logits, make, rounded
from tests.tiny import save

SCHEMES = [
    integers(4, 16, True), integers(4, 16, False), integers(3, 24, True), integers(3, 20, False),
    integers(8, "channel", False),
    integers(2, "tensor", True), integers(5, 16, False),
]  # fmt: skip


def weight(scheme: Scheme, dtype: torch.dtype = torch.bfloat16) -> Packed:
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(24, 48 if scheme.group_size != 20 else 50, generator=generator)
    if scheme.group_size == 20:  # a last group that is shorter
        padded = F.pad(dense, (0, 10))
        whole = rounded(padded, scheme, dtype)
        quantized = replace(whole, codes=whole.integers[:, :50].contiguous())
        return Packed.from_quantized(quantized)
    return Packed.from_quantized(rounded(dense, scheme, dtype))


def naive(packed: Packed, scale: torch.Tensor) -> torch.Tensor:
    """float64 [out, in], one weight at a time."""
    rows, columns = packed.words.shape[0], packed.in_features
    values = torch.zeros(rows, columns, dtype=torch.float64)
    for n in range(rows):
        for k in range(columns):
            g = 0 if packed.numbers.strategy != "group" else k // int(packed.numbers.columns(columns))
            row = 0 if packed.numbers.strategy == "tensor" else n
            bit = k * packed.bits
            stream = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(packed.words[n]))
            q = (stream >> bit) & (2**packed.bits - 1)
            z = 2 ** (packed.bits - 1) if packed.zero_point is None else int(packed.zero_point[row, g])
            values[n, k] = float(scale[row, g]) * (q - z)
    return values


@pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.describe)
def test_products_and_their_gradients_are_those_of_the_dense_weight(scheme: Scheme) -> None:
    packed = weight(scheme, torch.float32)
    bias = torch.randn(24)
    module = PackedLinear(packed, bias)
    x = torch.randn(2, 5, packed.in_features, requires_grad=True)
    exact = naive(packed, packed.scale)
    torch.testing.assert_close(module.weight.double(), exact, rtol=1e-6, atol=0)
    y = module(x)
    torch.testing.assert_close(y.double(), x.double() @ exact.T + bias.double(), rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), upstream.double() @ exact, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in module.named_parameters()] == ["bias"]
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.describe)
def test_gradients_of_scales(scheme: Scheme) -> None:
    """dL/dδ[n, g] = s · Σ_{k in g} dL/dW[n, k] (q − z), against autograd through a float64 table of the weights."""
    packed = weight(scheme, torch.float32)
    module = PackedLinear(packed)
    module.train_scales()
    assert module.scale_change is not None
    x = torch.randn(3, 7, packed.in_features, dtype=torch.float64)
    target = torch.randn(3, 7, 24, dtype=torch.float64)
    unit = naive(packed, torch.ones_like(packed.scale))
    change = torch.zeros(packed.scale.shape, dtype=torch.float64, requires_grad=True)
    scale = packed.scale.double() * (1 + change)
    dense = unit * scale[:, packed.columns()]
    F.mse_loss(x @ dense.T, target).backward()
    F.mse_loss(module(x.float()), target.float()).backward()
    assert module.scale_change.grad is not None
    assert change.grad is not None
    torch.testing.assert_close(module.scale_change.grad.double(), change.grad, rtol=1e-4, atol=1e-5)


def test_trained_scales_are_used_as_they_will_be_stored() -> None:
    packed = weight(integers(4, 16, True))
    module = PackedLinear(packed)
    module.train_scales()
    assert torch.equal(module.stored_scale, packed.scale)
    assert module.scale_change is not None
    with torch.no_grad():
        module.scale_change.fill_(0.1)
    expected = (packed.scale.float() * 1.1).bfloat16()
    assert module.stored_scale.dtype == torch.bfloat16
    torch.testing.assert_close(module.stored_scale, expected, rtol=2**-7, atol=0)
    torch.testing.assert_close(module.weight.double(), naive(packed, module.stored_scale), rtol=2**-8, atol=0)


def test_no_dense_weight_is_kept_for_the_backward() -> None:
    module = PackedLinear(weight(integers(4, 16, True)))
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.randn(2, 48, requires_grad=True)).sum().backward()
    assert kept == []
    module.train_scales()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.randn(2, 48)).sum().backward()
    assert [tuple(tensor.shape) for tensor in kept] == [(2, 48)]
    size = sum(buffer.nbytes for buffer in module.buffers())
    assert size == 24 * 48 // 2 + 24 * 3 * 2


def test_autocast_multiplies_in_its_type() -> None:
    module = PackedLinear(weight(integers(4, 16, True)))
    x = torch.randn(2, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert torch.equal(y, F.linear(x.bfloat16(), module.dense(torch.bfloat16)))


@pytest.mark.parametrize(
    ("format", "scheme", "name"),
    [
        (PACK_QUANTIZED, integers(4, 16, True), "llama_tied"),
        (PACK_QUANTIZED, integers(3, 32, False), "qwen2"),
        (GPTQ, integers(4, 16, True), "llama"),
        (GPTQ, integers(3, 32, False), "llama"),
        (GPTQ, integers(4, 16, False), "gpt2"),
    ],
)
def test_a_packed_checkpoint_is_loaded_packed(format: str, scheme: Scheme, name: str, tmp_path: Path) -> None:
    """Every linear keeps the dtype and bits of the checkpoint, and the model computes what the dense one does."""
    folder = tmp_path / "model"
    dense = make(folder, format, lambda _: scheme, name, torch.float32 if format == GPTQ else torch.bfloat16)
    model = load(folder, "cpu", torch.float32)
    assert model.config.use_cache is False
    packed = {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    with CheckpointReader(folder) as reader:
        modules = [n for n in reader.names() if n.endswith(("weight_packed", "qweight"))]
        assert len(packed) == len(modules)
        for module in packed.values():
            assert module.weight.dtype == torch.float32
        weights = {n.rpartition(".")[0] for n in modules}
        for stored in sorted(weights):
            assert torch.equal(
                read(reader, stored).dequantize(torch.float32), reader.read_module_weight(stored).float()
            )
    assert torch.equal(logits(model), logits(dense.float()))
    assert all(not p.requires_grad for m in packed.values() for p in m.parameters())


def test_a_gptq_checkpoint_in_another_order_of_groups(tmp_path: Path) -> None:
    """act_order as other tools write it: g_idx is no run of columns."""
    folder = tmp_path / "model"
    make(folder, GPTQ, lambda _: integers(4, 16, False))
    name = "model.layers.0.mlp.up_proj"
    with CheckpointReader(folder) as reader:
        header = reader.header(f"{name}.g_idx")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(5)).int() // 16
    with (folder / header.shard).open("r+b") as file:
        file.seek(header.begin)
        file.write(order.numpy().tobytes())
    with CheckpointReader(folder) as reader:
        packed = read(reader, name)
        assert packed.groups is not None
        assert torch.equal(packed.dequantize(torch.float16), reader.read_module_weight(name))
        module = PackedLinear(packed)
        module.train_scales()
        x = torch.randn(4, 64)
        module(x).sum().backward()
        assert module.scale_change is not None
        assert module.scale_change.grad is not None
        unit = torch.zeros_like(packed.scale, dtype=torch.float64)
        centred = packed.centred(torch.float64)
        for k in range(64):
            unit[:, int(order[k])] += centred[:, k] * float(x[:, k].sum())
        expected = unit * packed.scale.double()
        torch.testing.assert_close(module.scale_change.grad.double(), expected, rtol=1e-4, atol=1e-4)


def test_dense_checkpoints_are_loaded_in_the_asked_type(tmp_path: Path) -> None:
    model = load(save(tmp_path / "model", dtype=torch.bfloat16), "cpu", torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.use_cache is False


def test_packed_tensors_without_a_description(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make(folder, PACK_QUANTIZED, lambda _: integers(4, 16, True))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"targets": ["Linear"]', '"targets": ["re:nothing"]'))
    with CheckpointReader(folder) as reader, pytest.raises(StepFailed) as caught:
        read(reader, "model.layers.0.mlp.up_proj")
    assert caught.value.message == (
        "`model.layers.0.mlp.up_proj` is packed, but quantization_config in "
        f"{folder / 'config.json'} does not describe it"
    )

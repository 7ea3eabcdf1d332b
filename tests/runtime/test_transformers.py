"""A checkpoint as a runtime: the same logits as transformers' own loading, whole or token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from runner.errors import StepFailed
from runner.runtime.transformers import Transformers
from runner.steps.kinds import find
from tests import model_types, tiny
from tests.host import Host


def reference(folder: Path, ids: torch.Tensor) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: np.ndarray = model(ids).logits.numpy()
    return logits


@pytest.mark.parametrize("name", ["llama", "llama_tied", "mistral", "qwen3", "gemma3_text", "gpt2", "opt"])
def test_prefill_and_decode_are_the_full_forward(tmp_path: Path, name: str) -> None:
    """24 tokens pass the sliding window of 8 that some of them have."""
    folder = tiny.save(tmp_path, name)
    ids = tiny.tokens(2, 24)
    wanted = reference(folder, ids)
    runtime = Transformers(folder)
    given = ids.numpy()
    np.testing.assert_allclose(runtime.prefill(given), wanted, atol=2e-5)
    np.testing.assert_allclose(runtime.prefill(given, last=True), wanted[:, -1:], atol=2e-5)
    runtime.prefill(given[:, :5])
    for place in range(5, 24):
        np.testing.assert_allclose(runtime.decode(given[:, place : place + 1])[:, 0], wanted[:, place], atol=5e-5)
    assert (runtime.name, runtime.vocabulary, runtime.context, runtime.max_batch) == ("transformers", 96, 64, None)


@pytest.mark.parametrize("format", ["pack-quantized", "gptq"])
def test_packed_weights_rounded_and_exact(tmp_path: Path, format: str) -> None:
    """Without `exact` as the readers round; with it, scale · (q − z) of the stored scales, in float32."""
    dense = tiny.save(tmp_path / "dense", dtype=torch.bfloat16)
    host = Host(tmp_path, "quantize.rtn", dense, bits=4, group_size=16, symmetric=False, format=format)
    find("quantize.rtn").run(host)
    rounded, exact = (Transformers(host.out_dir, dtype=torch.float32, exact=e) for e in (False, True))
    name = "model.layers.0.mlp.up_proj"
    from runner.model.checkpoint.reader import CheckpointReader

    with CheckpointReader(host.out_dir) as reader:
        stored = reader.read_module_weight(name).float()
    ours = rounded._model.get_submodule(name).weight
    assert torch.equal(ours, stored)
    whole = exact._model.get_submodule(name).weight
    assert not torch.equal(whole, stored)
    assert torch.equal(whole.to(torch.bfloat16 if format == "pack-quantized" else torch.float16).float(), stored)


def test_a_state_space_model_decodes_as_it_prefills(tmp_path: Path) -> None:
    """Mamba's forward calls its cache by another name."""
    from transformers import AutoModelForCausalLM

    config = model_types.config("mamba2")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    given = tiny.tokens(2, 24).numpy()
    runtime = Transformers(tmp_path)
    wanted = runtime.prefill(given)
    runtime.prefill(given[:, :5])
    for place in range(5, 24):
        np.testing.assert_allclose(runtime.decode(given[:, place : place + 1])[:, 0], wanted[:, place], atol=5e-5)


@pytest.mark.filterwarnings("ignore")  # of peft and what it imports
def test_an_adapter_acts(tmp_path: Path) -> None:
    from runner.model.checkpoint import adapter_config, adapter_writer

    folder = tiny.save(tmp_path)
    ids = tiny.tokens(1, 6).numpy()
    before = Transformers(folder).prefill(ids)
    config = adapter_config.config(2, 4.0, ["q_proj"])
    module = "model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    adapter_writer.write(folder, config, {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b})
    found = Transformers(folder).prefill(ids)
    assert np.abs(found - before).max() > 1e-2
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), folder, subfolder="adapter").eval()
    with torch.no_grad():
        np.testing.assert_allclose(found, model(torch.from_numpy(ids)).logits.numpy(), atol=2e-5)


def test_what_does_not_fit(tmp_path: Path) -> None:
    runtime = Transformers(tiny.save(tmp_path))
    ids = np.full((1, 64), 5, np.int64)
    runtime.prefill(ids[:, :63])
    runtime.decode(ids[:, :1])
    with pytest.raises(StepFailed) as caught:
        runtime.decode(ids[:, :1])
    assert caught.value.message == "65 tokens; prompt and continuation may have 64 together"
    with pytest.raises(StepFailed) as caught:
        runtime.prefill(np.array([[5, 96]]))
    assert caught.value.message == "there is no token 96: the vocabulary has 96"
    with pytest.raises(StepFailed) as caught:
        runtime.prefill(np.zeros((1, 0), np.int64))
    assert caught.value.message == "token ids must be [batch, tokens], both at least 1; they are [1, 0]"


def test_limits_name_the_batch() -> None:
    from runner.runtime import limits

    with pytest.raises(StepFailed) as caught:
        limits.check(np.zeros((3, 1), np.int64), 0, 8, 2, 96)
    assert caught.value.message == "3 sequences at once; it runs at most 2"


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    from runner.runtime.open import open

    with pytest.raises(StepFailed, match="is truncated: its header describes"):
        open(folder)

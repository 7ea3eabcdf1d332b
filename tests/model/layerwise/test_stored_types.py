"""What is stored decides types: config.json names another one, and tensors of one model have several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.model.architecture.inspect import facts
from runner.model.checkpoint import stored_types
from runner.model.layerwise import dtypes, memory_budget
from runner.model.layerwise.streamed_model import StreamedModel
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host

WIDE = "model.layers.1.mlp.up_proj.weight"  # float32 in a model of bfloat16
LARGE = "model.layers.0.mlp.down_proj.weight"  # holds a value that float16 has not
KINDS: dict[str, dict[str, Any]] = {
    "quantize.rtn": {"bits": 8, "group_size": 16}, "quantize.gptq": {"bits": 8, "group_size": 16},
    "prune.wanda": {"sparsity": 0.5, "pattern": "unstructured"},
    "prune.magnitude": {"sparsity": 0.5, "pattern": "unstructured"},
}  # fmt: skip


def mixed(folder: Path) -> Path:
    """Matrices in bfloat16 but for one, norms in float32, and a config.json that says float16."""
    tiny.save(folder, "llama")
    path = folder / "model.safetensors"
    tensors = {
        name: value if "norm" in name or name == WIDE else value.bfloat16() for name, value in load_file(path).items()
    }
    tensors["model.norm.weight"] *= 1 + torch.linspace(0, 1e-3, 32)  # more digits than bfloat16 has
    tensors[LARGE][3, 5] = 1e5
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed(tmp_path_factory.mktemp("mixed") / "model")


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_types_and_bytes_stay(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fast: bool
) -> None:
    """Also where the forward runs in bfloat16, which rounds what is float32."""
    monkeypatch.setattr(dtypes, "fast_bf16", lambda: fast)
    host = Host(tmp_path, kind, source, tiny.tokens(4, 16), **KINDS[kind])
    find(kind).run(host)
    before, after = load_file(source / "model.safetensors"), load_file(host.out_dir / "model.safetensors")
    changed = {site.tensor for site in facts(source, "m").sites if site.tensor.startswith("model.layers.")}
    for name in set(before) - changed:
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name], before[name])
    for name in changed:
        if kind.startswith("prune"):
            left = after[name] != 0
            assert after[name].dtype == before[name].dtype
            assert torch.equal(after[name][left], before[name][left])
            assert 0.4 < float(left.float().mean()) < 0.6
        else:
            scale = after[f"{name}_scale"]
            assert scale.dtype == before[name].dtype
            exact = torch.equal(scale.bfloat16().to(scale.dtype), scale)
            assert exact == (name != WIDE), "scales of a float32 matrix are no rounded ones"


def test_forecasts_and_the_forward_go_by_what_is_stored(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(source, "m")
    assert stored_types.stored_type(found) == "bfloat16"
    for fast, value, dtype in ((True, 2, torch.bfloat16), (False, 4, torch.float32)):
        for module in (dtypes, memory_budget):
            monkeypatch.setattr(module, "fast_bf16", lambda fast=fast: fast)
        assert memory_budget.compute_bytes(found, "cpu") == value
        streamed = StreamedModel(source)
        streamed.reader.close()
        assert streamed.dtype == dtype
    assert memory_budget.compute_bytes(found, "cuda") == 2
    outside = 96 * 32 + 96 * 32 + 32
    assert [memory_budget.rest_bytes(found, value) for value in (2, 4)] == [2 * outside, 4 * outside]


def test_perplexity_is_that_of_transformers(source: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = tiny.tokens(4, 16)
    result = find("evaluate.perplexity").run(Host(tmp_path, "evaluate.perplexity", source, ids))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 96), ids[:, 1:].reshape(-1))
    np.testing.assert_allclose(result.metrics["perplexity"], float(loss.exp()), rtol=2e-2)

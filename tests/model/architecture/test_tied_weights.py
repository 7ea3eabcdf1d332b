"""Which weights are tied: transformers' own loading is the reference, for whatever is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import StepFailed
from runner.model.architecture.tied_weights import equal_tensors, resolve_ties
from runner.model.checkpoint.headers import read_headers
from runner.model.layerwise.whole_model import load_dense
from runner.runtime.open import open as open_runtime
from runner.runtime.transformers import Reference, Transformers
from runner.steps.kinds import find
from runner.training.load_model import load
from tests import tiny
from tests.host import Host

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIES = {"head": "table", "decoder": "table"}
CASES = ("embedding", "head", "equal", "distinct", "other type")


@pytest.mark.parametrize(("stored", "expected"), [
    ({"table"}, {"head": "table", "decoder": "table"}),
    ({"decoder"}, {"head": "decoder", "table": "decoder"}),
    ({"table", "head"}, {"head": "table", "decoder": "table"}),
    (set(), {}),
])  # fmt: skip
def test_what_is_not_stored_shares_what_is(stored: set[str], expected: Mapping[str, str]) -> None:
    assert resolve_ties(TIES, stored, lambda *_: True) == expected


def test_stored_with_different_values_is_not_tied() -> None:
    stored = {"table", "head", "decoder"}
    assert resolve_ties(TIES, stored, lambda one, _: one == "decoder") == {"decoder": "table"}


def model(folder: Path, case: str, dtype: torch.dtype = torch.float32, layers: int = 3) -> Path:
    """A model whose config.json ties the embeddings, with the head or the embedding stored as `case` says."""
    tiny.save(folder, "llama_tied", dtype, vocab_size=96, num_hidden_layers=layers)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    table = tensors[EMBEDDING]
    if case == "head":
        tensors[HEAD] = tensors.pop(EMBEDDING)
    elif case == "equal":
        tensors[HEAD] = table.clone()
    elif case != "embedding":
        torch.manual_seed(1)
        tensors[HEAD] = torch.randn_like(table).to(torch.float16 if case == "other type" else dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def reference(folder: Path, ids: torch.Tensor) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: np.ndarray = loaded(ids).logits.numpy()
    return logits


@pytest.mark.parametrize("case", CASES)
def test_everything_that_reads_a_model_agrees_with_transformers(tmp_path: Path, case: str) -> None:
    folder = model(tmp_path / "model", case)
    ids = tiny.tokens(1, 12)
    wanted = reference(folder, ids)
    for runtime in (Transformers(folder, dtype=torch.float32), Reference(folder)):
        np.testing.assert_allclose(runtime.prefill(ids.numpy()), wanted, atol=2e-5)
    trained = load(folder, "cpu", torch.float32).eval()
    trained.tie_weights()  # what trainers and evaluation harnesses call
    with torch.no_grad():
        np.testing.assert_allclose(trained(ids).logits.numpy(), wanted, atol=2e-5)
    assert (trained.lm_head.weight is trained.model.embed_tokens.weight) == (case in ("embedding", "head", "equal"))


# Graphs take seconds and compiled packages a minute each: they run nightly.
ENGINES = [
    *(("build.gguf", case) for case in CASES),
    *(pytest.param("build.onnx", case, marks=pytest.mark.nightly) for case in CASES),
    *(pytest.param("build.compile", case, marks=pytest.mark.nightly) for case in ("head", "distinct")),
]


@pytest.mark.parametrize(("kind", "case"), ENGINES)
def test_engines_agree_with_transformers(tmp_path: Path, kind: str, case: str) -> None:
    folder = tiny.byte_level(model(tmp_path / "model", case, torch.float32, layers=1))
    ids = tiny.tokens(1, 12)
    params: dict[str, dict[str, Any]] = {
        "build.onnx": {"precision": "fp32"}, "build.gguf": {"dense": "f32", "embedding": "f32"},
    }  # fmt: skip
    host = Host(tmp_path / "step", kind, folder, **params.get(kind, {}))
    find(kind).run(host)
    engine = open_runtime(host.out_dir, "cpu", 1)
    try:
        np.testing.assert_allclose(engine.prefill(ids.numpy()), reference(folder, ids), atol=2e-4)
    finally:
        engine.close()


def test_a_packed_model_keeps_its_own_head(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "distinct")
    host = Host(tmp_path / "step", "quantize.rtn", folder, bits=8, group_size=16)
    find("quantize.rtn").run(host)
    ids = tiny.tokens(1, 12)
    wanted = reference(host.out_dir, ids)
    trained = load(host.out_dir, "cpu", torch.float32).eval()
    trained.tie_weights()
    with torch.no_grad():
        found = trained(ids).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    np.testing.assert_allclose(Transformers(host.out_dir, dtype=torch.float32).prefill(ids.numpy()), wanted, atol=2e-4)


def test_a_head_that_is_nowhere_is_named(tmp_path: Path) -> None:
    """transformers fills it with random numbers."""
    folder = model(tmp_path / "model", "embedding")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(StepFailed) as caught:
        load_dense(folder, torch.device("cpu"), torch.float32)
    assert caught.value.message == f"`{folder}` lacks the tensor `lm_head.weight`"


def test_bytes_are_compared_to_the_end(tmp_path: Path) -> None:
    one = torch.zeros(9_000_000, dtype=torch.int16)
    other = one.clone()
    other[-1] = 1
    tensors = {"a": one, "b": other, "c": one.clone(), "d": one.view(3_000_000, 3).clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    headers = read_headers(tmp_path)
    assert [equal_tensors(tmp_path, headers["a"], headers[name]) for name in "bcd"] == [False, True, False]

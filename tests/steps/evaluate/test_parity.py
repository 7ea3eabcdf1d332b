"""`evaluate.parity` against a plain computation with transformers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.contracts.context import DataFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import Inputs, Result
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.runtime import open as runtimes
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host
from tests.runtime import copied

KIND = "evaluate.parity"


@pytest.fixture(autouse=True)
def format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runtimes.FORMATS, "copied", runtimes.Format("tests.runtime.copied", ("torch",), "none"))


def measured(folder: Path, engine: Path, source: Path, **params: Any) -> tuple[Result, Host]:
    host = Host(folder, KIND, engine, tiny.tokens(6, 24), others={"against": source},
                **({"prompt_tokens": 8, "new_tokens": 16, **params}))  # fmt: skip
    return find(KIND).run(host), host


def test_an_engine_that_computes_the_same(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "source")
    engine = copied.make(Path(shutil.copytree(source, tmp_path / "engine")))
    result, host = measured(tmp_path, engine, source)
    assert result.metrics == {
        "max_logit_difference": 0.0, "kl": 0.0, "top1_agreement": 1.0, "tokens": 4 * 24, "greedy_agreement": 1.0,
        "first_difference": 16, "prompts": 6,
    }  # fmt: skip
    assert result.details == {
        "runtime": "transformers", "sequence_length": 24, "windows": 4, "new_tokens": 16,
        "first_differences": [None] * 6,
    }  # fmt: skip
    phases = [(e["phase"], e["done"], e["total"]) for e in host.events]
    assert phases == [("logits", i, 4) for i in range(1, 5)] + [("greedy decoding", i, 6) for i in range(1, 7)]


def test_an_engine_that_does_not(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = tiny.save(tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    other = AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        other.lm_head.weight[7:20] *= 1.5
    other.save_pretrained(tmp_path / "engine")
    found = measured(tmp_path, copied.make(tmp_path / "engine"), source, windows=3)[0].metrics
    ids = tiny.tokens(6, 24)
    with torch.no_grad():
        theirs, ours = model(ids[:3]).logits.double(), other(ids[:3]).logits.double()
    p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
    assert found["max_logit_difference"] == pytest.approx(float((theirs - ours).abs().max()), rel=1e-4)
    assert found["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert found["top1_agreement"] == float((theirs.argmax(-1) == ours.argmax(-1)).double().mean()) < 1
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(ids[:, :8])
    a, b = (m.generate(ids[:, :8], attention_mask=mask, **options)[:, 8:].numpy() for m in (model, other))
    same = (a == b).all(axis=1)
    assert found["greedy_agreement"] == same.mean() < 1
    assert found["first_difference"] == min(int(np.argmin(x == y)) for x, y in zip(a[~same], b[~same], strict=True))


def inputs(folder: Path, length: int, vocabulary: int = 96, **engine: int) -> Inputs:
    checkpoint = facts(folder, "demo")
    against = replace(checkpoint, config=ModelConfig.of({**checkpoint.config.raw, "vocab_size": vocabulary}))
    data = DataFacts("text", 6, length, 1000, "0" * 64)
    made = replace(checkpoint, engine={"format": "copied", **engine})
    return Inputs(made, {"against": against}, {"data": data}, machine_facts("cpu"))


def complaints(given: Inputs) -> list[tuple[str, str, str | None, tuple[str | int, ...]]]:
    params = Host(Path(given.checkpoint.source), KIND, Path()).params
    return [(d.code, d.message, d.help, d.path) for d in find(KIND).check(params, given)]


def test_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = inputs(tiny.save(tmp_path / "source"), 64, context=96)
    assert complaints(given) == []
    cost = find(KIND).estimate(Host(tmp_path, KIND, Path()).params, given)
    assert cost.memory > 440 << 20
    assert cost.seconds > 10


def test_an_engine_that_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = inputs(tiny.save(tmp_path / "source"), 64, context=96)
    engine = replace(given, checkpoint=replace(given.checkpoint, engine={"format": "tensorrt", "context": 96}))
    assert complaints(engine) == [
        ("R504", "a TensorRT engine runs only on an NVIDIA GPU; this step runs on the CPU",
         "apply it on a machine with a GPU, or take the engine's graph: `from` a step of `build.onnx`", ()),
    ]  # fmt: skip
    assert complaints(replace(engine, machine=replace(engine.machine, device="cuda"))) == []


def test_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny.save(tmp_path / "source")
    assert complaints(inputs(folder, 24, vocabulary=97)) == [
        ("R420", "`against` has a vocabulary of 97 tokens, the engine one of 96",
         "compare with the checkpoint that the engine was made from", ("against",)),
        ("R476", "`prompt_tokens` is 32; the windows of the data have 24 tokens", "lower it to 24", ("prompt_tokens",)),
    ]  # fmt: skip
    assert complaints(inputs(folder, 128, context=64)) == [
        ("R476", "the windows of the data have 128 tokens; the engine runs at most 64",
         "lower `sequence_length` of the data, or build it for longer ones", ("data",)),
        ("R476", "`prompt_tokens` and `new_tokens` are 96 together; the engine runs at most 64",
         "lower one of them, or build it for longer sequences", ("new_tokens",)),
    ]  # fmt: skip

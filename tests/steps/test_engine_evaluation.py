"""Perplexity and divergence of engines, against transformers' own forward of the weights that the file holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from runner.contracts.context import DataFacts
from runner.contracts.step_kind import Inputs
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.recipe import step_graph
from runner.recipe.types import Step
from runner.steps.kinds import find
from tests.host import Host
from tests.steps.build import gguf_models

pytest.importorskip("gguf")
PERPLEXITY, DIVERGENCE = "evaluate.perplexity", "evaluate.divergence"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and its GGUF file in Q4_0."""
    folder = tmp_path_factory.mktemp("engines")
    checkpoint = gguf_models.model(folder / "model", max_position_embeddings=128)
    return checkpoint, gguf_models.built(folder, checkpoint, dense="q4_0")[0]


def logs(folder: Path, ids: torch.Tensor, **how: str) -> torch.Tensor:
    """Log-probabilities [windows, positions − 1, vocabulary] in float64, by transformers' own readers."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    with torch.no_grad():
        found: torch.Tensor = loaded(ids).logits[:, :-1].double().log_softmax(-1)
    return found


def test_perplexity_and_divergence_of_a_file(made: tuple[Path, Path], tmp_path: Path) -> None:
    ids = torch.randint(3, 4096, (3, 90), generator=torch.Generator().manual_seed(0))  # more than a chunk of positions
    p, q = logs(made[0], ids), logs(made[1], ids, gguf_file="model.gguf")
    measured = find(PERPLEXITY).run(Host(tmp_path / "perplexity", PERPLEXITY, made[1], ids))
    losses = -q.gather(2, ids[:, 1:, None]).squeeze(2)
    assert measured.metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert measured.metrics["perplexity"] == pytest.approx(float(losses.mean().exp()), rel=1e-5)
    assert (measured.metrics["tokens"], measured.metrics["windows"]) == (267, 3)
    np.testing.assert_allclose(measured.details["samples"]["loss"], losses.mean(1), rtol=1e-5)
    assert measured.details["runtime"] == "gguf"
    host = Host(tmp_path / "divergence", DIVERGENCE, made[1], ids, others={"against": made[0]})
    diverged = find(DIVERGENCE).run(host)
    np.testing.assert_allclose(diverged.details["samples"]["kl"], (p.exp() * (p - q)).sum(2).mean(1), rtol=1e-3)
    assert diverged.metrics["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(2).mean()), rel=1e-3)
    alike = (p.argmax(2) == q.argmax(2)).double().mean()
    assert diverged.metrics["top1_agreement"] == pytest.approx(float(alike), abs=1e-9)


def test_complaints(made: tuple[Path, Path]) -> None:
    engine = replace(facts(made[0], "demo"), engine={"format": "tensorrt", "context": 16})
    data = DataFacts("text", 6, 24, 1000, "0" * 64)
    inputs = Inputs(engine, {"against": engine}, {"data": data}, machine_facts("cpu"), 2)
    wanted = [
        ("R504", "a TensorRT engine runs only on an NVIDIA GPU; this step runs on the CPU"),
        ("R476", "the windows of the data have 24 tokens; the engine runs at most 16"),
        ("R714", "`resources: {processes: 2}`: an engine is run by one process"),
    ]
    for kind in (PERPLEXITY, DIVERGENCE):
        step = Host(made[0].parent / "check", kind, made[0], torch.zeros(1, 1))
        assert [(each.code, each.message) for each in find(kind).check(step.params, inputs)] == wanted
        assert find(kind).estimate(step.params, replace(inputs, processes=1)).memory > 3e8


def test_an_engine_is_measured_where_it_is_named() -> None:
    steps = [Step("integers", "quantize.rtn", {}), Step("file", "build.gguf", {})]
    assert step_graph.nearest(PERPLEXITY, steps) == step_graph.nearest(DIVERGENCE, steps) == "integers"
    assert step_graph.nearest("evaluate.latency", steps) == "file"

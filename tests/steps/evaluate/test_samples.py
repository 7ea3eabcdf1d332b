"""The values of single windows that evaluations keep for gates with a confidence, against transformers' own forward."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from runner.steps.kinds import find, noise
from tests import tiny
from tests.host import Host


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and the same with other weights."""
    folder = tmp_path_factory.mktemp("models")
    one = tiny.save(folder / "one", "llama")
    other = AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    other.save_pretrained(folder / "other")
    return one, folder / "other"


def logs(model: Path, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [windows, positions, vocabulary] in float64."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = loaded(ids).logits[:, :-1].double().log_softmax(-1)
    return found


def test_every_window_of_a_perplexity(models: tuple[Path, Path], tmp_path: Path) -> None:
    ids = torch.randint(0, 90, (7, 12), generator=torch.Generator().manual_seed(0))
    kind = "evaluate.perplexity"
    result = find(kind).run(Host(tmp_path, kind, models[0], ids))
    wanted = -logs(models[0], ids).gather(2, ids[:, 1:, None]).squeeze(2).mean(1)
    np.testing.assert_allclose(result.details["samples"]["loss"], wanted, rtol=2e-5)
    found = noise(kind, "perplexity")
    assert found is not None
    assert (found.samples, found.exponential, found.unit) == ("loss", True, "windows")
    mean = np.mean(result.details["samples"]["loss"])
    assert math.isclose(result.metrics["perplexity"], math.exp(mean), rel_tol=1e-7)


def test_every_window_of_a_divergence(models: tuple[Path, Path], tmp_path: Path) -> None:
    ids = torch.randint(0, 90, (5, 12), generator=torch.Generator().manual_seed(0))
    kind = "evaluate.divergence"
    result = find(kind).run(Host(tmp_path, kind, models[1], ids, others={"against": models[0]}))
    p, q = logs(models[0], ids), logs(models[1], ids)
    samples = result.details["samples"]
    np.testing.assert_allclose(samples["kl"], (p.exp() * (p - q)).sum(2).mean(1), rtol=1e-3)
    np.testing.assert_allclose(samples["top1_agreement"], (p.argmax(2) == q.argmax(2)).double().mean(1), atol=1e-7)
    for metric in ("kl", "top1_agreement"):
        assert math.isclose(result.metrics[metric], np.mean(samples[metric]), rel_tol=1e-6)
        assert noise(kind, metric) is not None
    assert noise(kind, "tokens") is None

"""No model type ends in a wrong result or a crash: a few types here, all of the mapping in the nightly tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.models_page import tower_types
from runner.model.architecture import probe
from runner.model.architecture.supported import causal_models
from runner.model.layerwise.describe import describe
from tests import towers
from tests.sweep import PERPLEXITY, RIGHT, STEPS, sweep
from tests.variants import VARIANTS

# Keys and values that layers share, cross-attention that is never called, a hybrid, an embedding of another width.
FEW = ("llama", "gemma4_text", "bart", "qwen3_5_text", "rembert")


@pytest.fixture(autouse=True)
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_answer", describe)


@pytest.mark.parametrize("model_type", FEW)
def test_right(model_type: str, tmp_path: Path) -> None:
    assert sweep(model_type, tmp_path).results == dict.fromkeys((PERPLEXITY, *STEPS), RIGHT)


# Positions scaled by a rule, a parallel block, latent queries.
SOME = ("llama, llama3 positions", "gpt_neox, parallel", "youtu, latent queries")


@pytest.mark.parametrize("name", SOME)
def test_variants(name: str, tmp_path: Path) -> None:
    model_type, changes = VARIANTS[name]
    assert sweep(model_type, tmp_path, changes).results == dict.fromkeys((PERPLEXITY, *STEPS), RIGHT)


def test_bfloat16(tmp_path: Path) -> None:
    assert sweep("qwen3", tmp_path, dtype=torch.bfloat16).results == dict.fromkeys((PERPLEXITY, *STEPS), RIGHT)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_right_or_refused(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model_type, changes = VARIANTS[name]
    outcome = sweep(model_type, tmp_path, changes, dtype)
    assert not outcome.no_model, outcome
    assert not outcome.wrong, outcome


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", sorted(causal_models()))
def test_right_or_refused(model_type: str, tmp_path: Path) -> None:
    outcome = sweep(model_type, tmp_path)
    assert not outcome.wrong, outcome


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", tower_types())
def test_towers_are_right_or_refused(model_type: str, tmp_path: Path) -> None:
    changes = towers.TOWERS[model_type].changes if model_type in towers.TOWERS else None
    outcome = sweep(model_type, tmp_path, changes)
    assert not outcome.wrong, outcome

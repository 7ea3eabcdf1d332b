"""No model type ends in a wrong result or a crash: a few types here, all of the mapping in the nightly tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.model.architecture import probe
from runner.model.architecture.supported import causal_models
from runner.model.layerwise.describe import describe
from tests.sweep import PERPLEXITY, RIGHT, STEPS, sweep

# Head tied under another name, cross-attention that is never called, initializers that need weights, a hybrid, a state
# space, a layer without a norm, an embedding of another width.
FEW = ("llama", "bert", "bart", "falcon", "qwen3_5_text", "mamba2", "modernbert-decoder", "rembert")


@pytest.fixture(autouse=True)
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_answer", describe)


@pytest.mark.parametrize("model_type", FEW)
def test_right(model_type: str, tmp_path: Path) -> None:
    assert sweep(model_type, tmp_path).results == dict.fromkeys((PERPLEXITY, *STEPS), RIGHT)


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", sorted(causal_models()))
def test_right_or_refused(model_type: str, tmp_path: Path) -> None:
    outcome = sweep(model_type, tmp_path)
    assert not outcome.wrong, outcome

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.conftest import KINDS, RECIPE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with toy.yaml, whose kinds compute nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(KINDS))
    monkeypatch.delenv("RUNNER_JOBS", raising=False)
    (tmp_path / "toy.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path

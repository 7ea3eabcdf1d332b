from __future__ import annotations

import pytest

from tests.execute.applying import KINDS


@pytest.fixture(autouse=True)
def _fake_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(KINDS))

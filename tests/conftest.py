"""What holds for every test: no network, no settings of the person who runs it, few threads."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from runner.model.architecture import probe
from runner.plan import machine

# A machine that is busy elsewhere for a moment is no failure.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")
# Before torch is imported here or in a worker: the matrices are tiny, and threads would only wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
# What transformers says of the checkpoints of tests is kept with what else pytest keeps.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".pytest_cache" / "user")
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def _describe(request: probe.Request) -> Any:
    """What the process of its own would answer, without starting it for each of many tiny checkpoints."""
    return importlib.import_module(probe.PROGRAM).describe(request)


probe.answer_with(_describe)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Of `-n auto`: a process for each core that this one may use, where it would count those of the whole machine.

    Each takes up to 2 GB with the workers of steps that it starts.
    """
    return max(1, min(len(os.sched_getaffinity(0)), machine.memory()[1] // 2**31))


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("RUNNER_JOBS", "RUNNER_STEPS_PATH", "RUNNER_DEBUG", "COLUMNS", "NO_COLOR", "FORCE_COLOR")
    # Where they are set, apply annotates: on GitHub these tests are not what is to be annotated.
    for name in (*settings, "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)

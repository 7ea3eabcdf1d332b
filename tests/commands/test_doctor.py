from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from runner.report import health
from tests.commands.conftest import Run


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch answers at once."""
    facts = {"version": "2.13.0", "threads": 2, "cuda": None, "gpus": []}
    done = subprocess.CompletedProcess([], 0, json.dumps(facts), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


def test_a_line_for_everything(run: Run) -> None:
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert "ok    torch        2.13.0, no CUDA, 2 threads\n" in out.replace("ok  torch  ", "ok    torch  ")
    for name in ("python", "packages", "processor", "memory", "gpu", "jobs folder", "hard links"):
        assert f"  {name} " in out


def test_it_leaves_nothing_behind(run: Run, folder: Path) -> None:
    run("doctor")
    assert [path.name for path in folder.iterdir()] == ["toy.yaml"]


def test_json(run: Run) -> None:
    findings = json.loads(run("doctor", "--json")[1])
    assert {"name", "level", "text", "remedy"} == set(findings[0])


def test_a_base_package_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    version = health._version
    monkeypatch.setattr(health, "_version", lambda name: None if name == "safetensors" else version(name))
    code, out, _ = run("doctor")
    assert code == 4
    assert "missing: safetensors\n" in out
    assert "remedy: pip install safetensors\n" in out


def test_an_extra_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "extras", lambda: ["toys"])
    monkeypatch.setattr(health, "requirements", lambda extra=None: ["no-such-package"] if extra else [])
    assert health._extras() == [
        health.Finding("extra toys", "warn", "without no-such-package", "pip install 'runner[toys]'")
    ]
    assert run("doctor")[0] == 0


def test_torch_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess(
        [], 1, "", "Traceback ...\nImportError: libgomp.so.1: cannot open shared object\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(health, "_version", lambda name: "2.13.0")
    assert health._torch() == (
        health.Finding(
            "torch", "fail", "2.13.0 does not start: ImportError: libgomp.so.1: cannot open shared object",
            "pip install --force-reinstall torch",
        ),
        {},
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_jobs_folder_that_cannot_be_written(run: Run, folder: Path) -> None:
    folder.chmod(0o555)
    code, out, _ = run("doctor")
    folder.chmod(0o755)
    assert code == 4
    assert "jobs cannot be written: Permission denied\n" in out


def test_no_hard_links(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    code, out, _ = run("doctor")
    assert code == 0
    assert "not possible here (Operation not permitted): jobs copy the files of the store" in out

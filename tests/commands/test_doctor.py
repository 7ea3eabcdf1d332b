from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from runner.report import doctor
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
    assert re.search(r"^ok +torch +2\.13\.0, no CUDA, \d+ threads$", out, re.MULTILINE)
    for name in ("python", "packages", "processor", "memory", "gpu", "jobs folder", "hard links"):
        assert f"  {name} " in out


def test_it_leaves_nothing_behind(run: Run, folder: Path) -> None:
    run("doctor")
    assert [path.name for path in folder.iterdir()] == ["toy.yaml"]


def test_json(run: Run) -> None:
    findings = json.loads(run("doctor", "--json")[1])
    assert {"name", "level", "text", "remedy"} == set(findings[0])


def test_a_base_package_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "safetensors" else version(name))
    code, out, _ = run("doctor")
    assert code == 4
    assert "missing: safetensors\n" in out
    assert "remedy: pip install safetensors\n" in out


def test_an_extra_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "extras", lambda: ["toys"])
    monkeypatch.setattr(doctor, "requirements", lambda extra=None: ["no-such-package"] if extra else [])
    assert doctor._extras() == [
        doctor.Finding("extra toys", "warn", "without no-such-package", "pip install 'runner[toys]'")
    ]
    assert run("doctor")[0] == 0


def test_torch_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess(
        [], 1, "", "Traceback ...\nImportError: libgomp.so.1: cannot open shared object\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0")
    assert doctor._torch() == (
        doctor.Finding(
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
    assert "not possible here (Operation not permitted): jobs copy the files of the store" in " ".join(out.split())


def test_which_engines_can_be_built_and_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnx": "1.23", "onnxscript": "0.7", "onnxruntime": "1.32", "tensorrt-rtx": "1.7.1", "gguf": "0.19"}
    monkeypatch.setattr(doctor, "_version", installed.get)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CXX", raising=False)
    assert doctor._engines({}) == [
        doctor.Finding("onnx engine", "ok", "builds and runs it: onnxruntime 1.32"),
        doctor.Finding("rtx engine", "ok", "builds it, runs it on a machine with a GPU: tensorrt-rtx 1.7.1"),
        doctor.Finding(
            "trt engine",
            "ok",
            "neither builds nor runs it: no GPU that torch can use; `flavour: rtx` builds without one",
        ),
        doctor.Finding("aot engine", "ok", "builds and runs it: /usr/bin/g++"),
        doctor.Finding("gguf engine", "ok", "builds and runs it: gguf 0.19"),
    ]


def test_engines_that_something_is_missing_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert doctor._engines({"gpus": ["H100"]}) == [
        doctor.Finding("onnx engine", "warn", "`build.onnx` cannot: without onnx, onnxscript, onnxruntime",
                       "pip install 'runner[onnx]'"),
        doctor.Finding("rtx engine", "warn", "`build.tensorrt` cannot: without onnx, onnxscript, tensorrt-rtx",
                       "pip install 'runner[tensorrt]'"),
        doctor.Finding("trt engine", "warn", "cannot: without onnx, onnxscript, tensorrt",
                       "pip install 'runner[tensorrt]' tensorrt"),
        doctor.Finding("aot engine", "warn",
                       "`build.compile` cannot build: there is no C++ compiler; packages built elsewhere run",
                       "install g++ (Debian: apt install g++), or set CXX"),
        doctor.Finding("gguf engine", "warn", "`build.gguf` cannot: without gguf", "pip install 'runner[gguf]'"),
    ]  # fmt: skip

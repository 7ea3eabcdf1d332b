"""What a step gives a server: arguments, variables, and where its program is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.recipe.schema.load import defaults
from runner.runtime.serving import commands


def server(**params: object) -> commands.Server:
    return commands.find(defaults("evaluate.served", {"data": "text", **params}))


def test_own_arguments_follow_and_own_variables_replace() -> None:
    found = server(server="vllm", arguments=["--dtype", "bfloat16"], variables={"VLLM_CPU_KVCACHE_SPACE": "4"})
    assert found.program == "vllm"
    assert found.arguments[:2] == ("serve", "{model}")
    assert found.arguments[-2:] == ("--dtype", "bfloat16")
    assert found.variables["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert found.variables["VLLM_NO_USAGE_STATS"] == "1"


def test_vllm_runs_by_the_interpreter_of_an_environment() -> None:
    """Its CPU build of the index has no metadata by the name that its program asks for."""
    params = defaults("evaluate.served", {"data": "text", "server": "vllm", "arguments": ["--dtype", "float32"]})
    found = commands.find(params, in_environment=True)
    assert (found.program, found.arguments[:3]) == ("python", ("-m", "vllm.entrypoints.openai.api_server", "--model"))
    assert found.arguments[-2:] == ("--dtype", "float32")
    own = {**params, "program": "/opt/vllm"}
    assert commands.find(own, in_environment=True).program == "/opt/vllm"


def test_llama_cpp_of_an_environment_is_its_program_or_its_package(tmp_path: Path) -> None:
    """The file that the interpreter runs imports nothing of runner, and starts whichever is there."""
    params = defaults("evaluate.served", {"data": "text", "server": "llama.cpp"})
    found = commands.find(params, in_environment=True)
    assert found.program == "python"
    assert found.arguments[1:] == commands.SERVERS["llama.cpp"].arguments
    arguments = [text.format(model="m.gguf", name="n", host="127.0.0.1", port="8", threads="2", parallel="4")
                 for text in found.arguments[1:]]  # fmt: skip
    python = tmp_path / "python"
    python.symlink_to(sys.executable)

    def run(folders: str) -> subprocess.CompletedProcess[str]:
        own = {"PATH": os.defpath, "PYTHONPATH": folders}
        command = [str(python), "-S", found.arguments[0], *arguments, "--ctx-size", "512"]
        return subprocess.run(command, capture_output=True, text=True, env=own, check=False)

    neither = run("")
    assert neither.returncode == 1
    message = "the environment has neither a program llama-server nor the package xllamacpp: require one of them\n"
    assert neither.stderr == message
    (tmp_path / "xllamacpp.py").write_text(
        "from types import SimpleNamespace as Any\n"
        "def CommonParams(): return Any(model=Any(), cpuparams=Any())\n"
        "def Server(params): print(params); raise SystemExit(7)\n"
    )
    package = run(str(tmp_path))
    assert (package.returncode, package.stderr) == (7, "")
    for each in ("path='m.gguf'", "n_threads=2", "{'n'}", "['127.0.0.1']", "port=8", "n_parallel=4", "n_ctx=512"):
        assert each in package.stdout
    program = tmp_path / "llama-server"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    assert run(str(tmp_path)).stdout == " ".join([*arguments, "--ctx-size", "512"]) + "\n"


def test_another_server_is_asked_for_its_own_model_unless_it_is_given_a_name() -> None:
    assert server(server="other", program="x", arguments=["{port}"]).model is None
    assert server(server="other", program="x", arguments=["{port}", "--alias={name}"]).model == "{name}"


def test_fields_that_nothing_fills() -> None:
    assert commands.unknown_fields(["{model}", "{prot}", "{{", "--x={port}", "}", "{}"]) == ["prot", "}", ""]


def test_an_environment_comes_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("path", "environment"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vllm").write_text("#!/bin/sh\n")
        (tmp_path / folder / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    vllm, python = server(server="vllm"), tmp_path / "environment" / "python"
    assert commands.program(vllm, None) == str(tmp_path / "path" / "vllm")
    assert commands.program(vllm, python) == str(tmp_path / "environment" / "vllm")
    assert commands.program(server(server="llama.cpp"), python) is None
    found = commands.environment(vllm, python, "cpu", 3)
    assert found["PATH"] == f"{tmp_path / 'environment'}:{tmp_path / 'path'}"
    assert (found["OMP_NUM_THREADS"], found["HF_HUB_OFFLINE"], found["CUDA_VISIBLE_DEVICES"]) == ("3", "1", "")
    assert not {"PYTHONPATH", "OMP_WAIT_POLICY"} & set(found)
    assert commands.environment(vllm, None, "cuda", 3)["PYTHONPATH"] == "/somewhere"

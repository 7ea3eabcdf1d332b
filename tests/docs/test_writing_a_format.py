"""The text of docs/writing-a-format.md, followed to the letter in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "writing-a-format.md"
MODULE = Path("runner/model/checkpoint/formats/byte_integers.py")
SCHEMA = Path("schemas/core.schema.json")


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with the page's module and its line of the schema: one new file and one changed."""
    folder = tmp_path / "project"
    for name in ("runner", "schemas"):
        shutil.copytree(ROOT / name, folder / name, copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / MODULE).write_text("\n\n".join(blocks("python")), encoding="utf-8")
    schema = json.loads((folder / SCHEMA).read_text(encoding="utf-8"))
    (enum,) = blocks("json")
    entry = schema["$defs"]["quantized_format"]
    assert set(entry["enum"]) | {"byte-integers"} == set(json.loads(enum)["enum"])
    entry.update(json.loads(enum))
    (folder / SCHEMA).unlink()  # a link to the project's own
    (folder / SCHEMA).write_text(json.dumps(schema), encoding="utf-8")
    return folder


def run(project: Path, recipe: Path, *options: str) -> str:
    """`runner apply` of the copy. The modules of this process are of the project itself."""
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, "-m", "runner", "apply", recipe.name, *options],
        cwd=recipe.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_format_of_the_page_is_written_and_read(project: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (text,) = blocks("yaml")
    (tmp_path / "bytes.yaml").write_text(text, encoding="utf-8")
    run(project, tmp_path / "bytes.yaml")
    # In float32 scales of the same integers: what differs from pack-quantized is the rounding of scales alone.
    (job,) = (path for path in (tmp_path / "jobs").iterdir() if path.name.startswith("bytes-"))
    written = load_file(job / "output" / "model.safetensors")
    codes = written["model.layers.0.mlp.up_proj.weight_codes"]
    assert codes.max() < 2**5
    config = json.loads((job / "output" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "byte-integers"
    packed = text.replace("byte-integers", "pack-quantized").replace("name: bytes", "name: packed")
    (tmp_path / "packed.yaml").write_text(packed, encoding="utf-8")
    run(project, tmp_path / "packed.yaml")
    ours, theirs = (perplexity(tmp_path / "jobs", name) for name in ("bytes", "packed"))
    assert ours == pytest.approx(theirs, rel=2e-3)
    card = (job / "output" / "README.md").read_text(encoding="utf-8")
    assert "Load it with runner (`pip install runner`); transformers does not know `byte-integers`:" in card


def perplexity(jobs: Path, name: str) -> float:
    (job,) = (path for path in jobs.iterdir() if path.name.startswith(f"{name}-"))
    (metrics,) = (job / "steps").glob("02-*/metrics.json")
    return float(json.loads(metrics.read_text(encoding="utf-8"))["perplexity"])


def test_it_meets_the_protocol_and_says_what_it_cannot_hold(project: Path) -> None:
    code = """
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.format import Matrix
from runner.model.checkpoint.quantization.scheme import integers
from tests.model.checkpoint.formats.checkpoints import departures

print(departures(formats.find("byte-integers")))
print(*(formats.refuse("byte-integers", integers(4, 32, False), Matrix(64, 64)) or ()), sep="; ")
"""
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "[]\n"
        "is to be stored as 4-bit, asymmetric, groups of 32; `byte-integers` holds symmetric integers with a scale for "
        "each row; use `symmetric: true`, or `format: awq` or `format: gptq` or `format: pack-quantized`\n"
    )

"""Which runtime a folder gets, and what is said of one that gets none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.errors import MachineError, StepFailed, UsageError
from runner.runtime import open
from tests import tiny


def test_a_checkpoint(tmp_path: Path) -> None:
    assert open.open(tiny.save(tmp_path)).name == "transformers"


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open.open(tmp_path)
    assert caught.value.message == (
        f"`{tmp_path}` holds neither an engine (engine.json) nor a checkpoint (config.json)"
    )
    assert caught.value.help == "name a job, or a folder that one of its steps wrote"


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(StepFailed) as caught:
        open.open(tmp_path)
    assert caught.value.message == (
        f"`{tmp_path}` holds no weights: neither `model.safetensors` nor `model.safetensors.index.json` is there"
    )


@pytest.mark.parametrize(("text", "message"), [
    ("{", "cannot be read as JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ("[]", "must hold a JSON object; it holds a list"),
    ("{}", "has the format null; known are {known}"),
    ('{"format": "pickle"}', 'has the format "pickle"; known are {known}'),
], ids=["torn", "list", "none", "unknown"])  # fmt: skip
def test_an_engine_file_that_says_nothing(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "engine.json"
    path.write_text(text)
    with pytest.raises(StepFailed) as caught:
        open.open(tmp_path)
    wanted = message.replace("{known}", ", ".join(open.FORMATS))
    assert caught.value.message == f"`{path}` {wanted}"
    assert caught.value.help == "build it again"


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    (tmp_path / "engine.json").write_text(json.dumps({"format": "tensorrt"}))
    with pytest.raises(MachineError) as caught:
        open.open(tmp_path)
    assert caught.value.message == (
        "an engine of the format tensorrt needs the package tensorrt_rtx or tensorrt, which is not installed"
    )
    assert caught.value.help == "`pip install 'runner[tensorrt]'`"


def test_a_gguf_file_that_is_missing_or_damaged(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "engine.json").write_text(json.dumps({"format": "gguf", "file": "model.gguf"}))
    with pytest.raises(StepFailed) as caught:
        open.open(tmp_path)
    assert caught.value.message == f"`{tmp_path}` has no `model.gguf`, which its engine.json names"
    (tmp_path / "model.gguf").write_bytes(b"GGUFxxxx" * 8)
    with pytest.raises(StepFailed) as caught:
        open.open(tmp_path)
    assert caught.value.message == f"`{tmp_path}` has no config.json"
    model = Path(open.__file__).parents[1] / "demo" / "models" / "tiny-llama"
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(StepFailed, match=r"model.gguf` cannot be read: "):
        open.open(tmp_path)

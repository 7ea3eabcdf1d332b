"""What the runtime of TensorRT engines refuses before it touches a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.errors import MachineError, RunnerError, StepFailed
from runner.runtime import tensorrt

DESCRIBED: dict[str, Any] = {
    "format": "tensorrt", "flavour": "rtx", "version": "1.7.1.116", "file": "model.engine", "engine_bytes": 8,
    "compute_capabilities": ["8.6", "12.0+"], "context": 64, "max_batch": 1, "vocabulary": 96, "layers": 2,
    "kv_heads": 2, "head_dim": 16, "source": {"digest": "0" * 64},
}  # fmt: skip


def refused(folder: Path, **changes: Any) -> RunnerError:
    (folder / "engine.json").write_text(json.dumps({**DESCRIBED, **changes}))
    with pytest.raises(RunnerError) as caught:
        tensorrt.open(folder)
    return caught.value


def test_another_version_is_named_beside_the_installed_one() -> None:
    tensorrt.refuse_version(DESCRIBED, "1.7.1.116")
    with pytest.raises(MachineError) as caught:
        tensorrt.refuse_version(DESCRIBED, "1.8.0.12")
    assert caught.value.render() == (
        "error: the engine was built by TensorRT-RTX 1.7.1.116; 1.8.0.12 is installed, "
        "and each runs only its own engines\n"
        "help: `pip install tensorrt-rtx==1.7.1.116`, or build it again"
    )
    with pytest.raises(MachineError) as caught:
        tensorrt.refuse_version({**DESCRIBED, "flavour": "enterprise", "version": "11.4"}, None)
    assert caught.value.render() == (
        "error: the engine was built by TensorRT 11.4, which is not installed\nhelp: `pip install tensorrt==11.4`"
    )


@pytest.mark.parametrize("found", [(8, 6), (12, 0), (12, 1), (13, 0)])
def test_gpus_that_an_engine_is_for(found: tuple[int, int]) -> None:
    tensorrt.refuse_capability(DESCRIBED, found)


def test_another_gpu_is_named_beside_those_it_is_for() -> None:
    def refused(found: tuple[int, int], **changes: Any) -> str:
        with pytest.raises(MachineError) as caught:
            tensorrt.refuse_capability({**DESCRIBED, **changes}, found)
        return caught.value.render()

    assert refused((9, 0)) == (
        "error: the engine is for GPUs of compute capability 8.6, 12.0 and later; this one has 9.0\n"
        "help: build it on this GPU with `flavour: enterprise`, which rtx has no engines for"
    )
    assert refused((8, 9)) == (
        "error: the engine is for GPUs of compute capability 8.6, 12.0 and later; this one has 8.9\n"
        'help: build it for this GPU: `compute_capabilities: ["8.9"]`'
    )
    assert refused((9, 0), flavour="enterprise", compute_capabilities=["8.0"]) == (
        "error: the engine is for GPUs of compute capability 8.0; this one has 9.0\nhelp: build it again on this GPU"
    )


def test_a_package_of_another_name_tells_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """tensorrt-cu13 installs the module `tensorrt` and no package of that name."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0.1"))
    assert tensorrt._installed("enterprise") == "11.4.0.1"


def test_a_broken_folder(tmp_path: Path) -> None:
    missing = refused(tmp_path)
    assert isinstance(missing, StepFailed)
    assert missing.message == f"`{tmp_path}/model.engine` is missing"
    (tmp_path / "model.engine").write_bytes(b"1234")
    short = refused(tmp_path)
    assert short.render() == (
        f"error: `{tmp_path}/model.engine` is incomplete: it has 4 bytes, engine.json says 8\n"
        "help: copy it again, or build it again"
    )
    assert refused(tmp_path, context=None).message.startswith(
        f"`{tmp_path}/engine.json` does not describe a TensorRT engine: TypeError("
    )
    assert refused(tmp_path, source=None).message.startswith(
        f"`{tmp_path}/engine.json` does not describe a TensorRT engine: TypeError("
    )
    assert refused(tmp_path, compute_capabilities=[]).message == (
        f"`{tmp_path}/engine.json` does not describe a TensorRT engine"
    )

"""A graph in onnxruntime: what it refuses and what it says of files that are not sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from runner.errors import MachineError, StepFailed
from runner.runtime import onnxruntime, open
from tests.export.exported import build, prompts
from tests.tiny import save


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return build(folder, save(folder / "model", num_hidden_layers=1))


@pytest.fixture
def copied(engine: Path, tmp_path: Path) -> Path:
    for name in ("onnx/model.onnx", "onnx/model.onnx_data", "engine.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((engine / name).read_bytes())
    return tmp_path


def test_what_it_is(engine: Path) -> None:
    runtime = open.open(engine, threads=1)
    assert (runtime.name, runtime.vocabulary, runtime.context, runtime.max_batch) == ("onnxruntime", 96, 64, None)
    ids = prompts(2, 9)
    assert np.array_equal(runtime.prefill(ids, last=True), runtime.prefill(ids)[:, -1:])
    runtime.close()


def test_a_second_prompt_forgets_the_first(engine: Path) -> None:
    runtime = open.open(engine, threads=1)
    first = runtime.prefill(prompts(2, 9))
    runtime.decode(prompts(2, 1))
    runtime.prefill(prompts(3, 4, seed=1))
    assert np.array_equal(runtime.prefill(prompts(2, 9)), first)


def test_more_tokens_than_the_context(engine: Path) -> None:
    runtime = open.open(engine, threads=1)
    with pytest.raises(StepFailed) as caught:
        runtime.prefill(prompts(1, 65))
    assert caught.value.message == "65 tokens; prompt and continuation may have 64 together"
    runtime.prefill(prompts(1, 64))
    with pytest.raises(StepFailed):
        runtime.decode(prompts(1, 1))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_cache_that_is_written_in_place(
    batch: int, engine: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are those of a cache that grows, also where its room has to grow."""
    described = json.loads((engine / "engine.json").read_text())
    assert described["past_present_share_buffer"] is True
    (copied / "engine.json").write_text(json.dumps(described | {"past_present_share_buffer": False}))
    monkeypatch.setattr(onnxruntime, "_ROOM", 2)
    ids = prompts(batch, 40)
    ours, growing = open.open(engine, threads=1), open.open(copied, threads=1)
    assert np.array_equal(ours.prefill(ids[:, :5]), growing.prefill(ids[:, :5]))
    cache = ours._past[0].data_ptr()  # type: ignore[attr-defined]
    assert np.array_equal(ours.decode(ids[:, 5:6]), growing.decode(ids[:, 5:6]))
    assert ours._past[0].data_ptr() == cache  # type: ignore[attr-defined]
    for place in range(6, 40):
        new = ids[:, place : place + 1]
        assert np.array_equal(ours.decode(new), growing.decode(new))


def test_a_graph_that_is_torn(copied: Path) -> None:
    path = copied / "onnx/model.onnx"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(StepFailed) as caught:
        open.open(copied)
    assert caught.value.message.startswith(f"onnxruntime cannot load `{path}`: ")
    assert caught.value.help == "build it again"


def test_weights_that_are_torn_or_missing(copied: Path) -> None:
    path = copied / "onnx/model.onnx_data"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StepFailed) as caught:
        open.open(copied)
    assert caught.value.message.startswith(f"onnxruntime cannot load `{copied / 'onnx/model.onnx'}`: ")
    path.unlink()
    with pytest.raises(StepFailed) as caught:
        open.open(copied)
    assert caught.value.message.startswith(f"onnxruntime cannot load `{copied / 'onnx/model.onnx'}`: ")


def test_a_graph_that_is_missing(copied: Path) -> None:
    (copied / "onnx/model.onnx").unlink()
    with pytest.raises(StepFailed) as caught:
        open.open(copied)
    assert caught.value.message == f"`{copied / 'onnx/model.onnx'}` is missing"


def test_an_engine_file_that_lacks_something(copied: Path) -> None:
    described = json.loads((copied / "engine.json").read_text())
    del described["kv_heads"]
    (copied / "engine.json").write_text(json.dumps(described))
    with pytest.raises(StepFailed) as caught:
        open.open(copied)
    assert caught.value.message == f"`{copied / 'engine.json'}` does not describe an ONNX graph: KeyError('kv_heads')"


def test_a_device_that_is_not_there(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(MachineError) as fused:
        open.open(engine, device="cuda")
    assert fused.value.message.endswith(" has onnxruntime's fused attention, which runs on processors alone")
    standard = shutil.copytree(engine, tmp_path / "standard")
    described = json.loads((standard / "engine.json").read_text())
    (standard / "engine.json").write_text(json.dumps({**described, "operators": "standard"}))
    with pytest.raises(MachineError) as caught:
        open.open(standard, device="cuda")
    assert caught.value.message == "onnxruntime has no CUDAExecutionProvider here, which the device `cuda` needs"

"""`build.compile`: a real package, compiled here, against the checkpoint in transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import Inputs
from runner.errors import StepFailed
from runner.model.architecture.inspect import facts
from runner.model.checkpoint import adapter_config, adapter_writer
from runner.plan.machine import machine_facts
from runner.runtime import open as runtimes
from runner.runtime.greedy import greedy
from runner.runtime.transformers import Transformers
from runner.steps import kinds
from runner.steps.build import compile as kind
from runner.steps.kinds import find
from runner.system import cpu
from tests import tiny
from tests.host import Host

KIND = "build.compile"
COMPILER = pytest.mark.skipif(kind.compiler() is None, reason="there is no C++ compiler")


def built(folder: Path, checkpoint: Path, **params: str) -> Path:
    host = Host(folder / "compiled", KIND, checkpoint, None, None, None, **params)
    result = find(KIND).run(host)
    assert result.metrics == {"bytes": (host.out_dir / "model.pt2").stat().st_size}
    assert [event["phase"] for event in host.events] == ["loading", "exporting", "compiling", "compiling"]
    return host.out_dir


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package and the checkpoint it was made from: packed, asymmetric, with a DoRA adapter; one layer slides."""
    folder = tmp_path_factory.mktemp("compile")
    dense = tiny.save(folder / "model", "qwen3", num_hidden_layers=2, use_sliding_window=True, sliding_window=8,
                      max_window_layers=1)  # fmt: skip
    host = Host(folder, "quantize.rtn", dense, bits=4, group_size=16, symmetric=False)
    find("quantize.rtn").run(host)
    module = "model.layers.1.self_attn.q_proj"
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(3))
    parts = {"lora_A.weight": draw(2, 32), "lora_B.weight": draw(64, 2), "lora_magnitude_vector": draw(64).abs()}
    config = adapter_config.config(2, 4.0, [module], dora=True)
    adapter_writer.write(host.out_dir, config, {f"{module}.{name}": tensor for name, tensor in parts.items()})
    return built(folder, host.out_dir), host.out_dir


@pytest.mark.nightly  # compiling takes more than a minute
@COMPILER
def test_it_computes_what_the_checkpoint_computes(package: tuple[Path, Path]) -> None:
    """Any batch, any length, from an empty cache on, token by token."""
    compiled, checkpoint = (runtimes.open(package[0], "cpu", 1), Transformers(package[1], exact=True))
    assert (compiled.name, compiled.vocabulary, compiled.context) == ("aotinductor", 96, 64)
    for batch, length in ((1, 1), (1, 24), (3, 17), (4, 2)):
        ids = tiny.tokens(batch, length).numpy()
        np.testing.assert_allclose(compiled.prefill(ids), checkpoint.prefill(ids), atol=1e-4)
        np.testing.assert_allclose(compiled.prefill(ids, last=True), checkpoint.prefill(ids, last=True), atol=1e-4)
        for token in range(3, 6):
            step = np.full((batch, 1), token)
            np.testing.assert_allclose(compiled.decode(step), checkpoint.decode(step), atol=1e-4)
    ids = tiny.tokens(5, 8).numpy()
    assert greedy(compiled, ids, 40) == greedy(checkpoint, ids, 40)


@pytest.mark.nightly  # compiling takes more than a minute
@COMPILER
def test_the_folder(package: tuple[Path, Path]) -> None:
    engine = json.loads((package[0] / "engine.json").read_text())
    assert engine == {
        "format": "aotinductor", "precision": "fp32", "context": 64, "vocabulary": 96, "max_batch": None,
        "device": "cpu", "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__,
        "file": "model.pt2", "layers": 2, "instructions": cpu.instructions(), "kv_heads": 2, "head_dim": 16,
        "source": {"digest": "0" * 64},
    }  # fmt: skip
    assert "quantization_config" not in json.loads((package[0] / "config.json").read_text())
    assert "torch.zeros(1, 2, 0, 16, dtype=torch.float32) for _ in range(4)" in (package[0] / "README.md").read_text()


@pytest.mark.nightly  # compiling takes more than a minute
@COMPILER
@pytest.mark.parametrize(("changes", "message"), [
    ({"torch": "2.0.0"}, f"is compiled for torch 2.0.0; here is torch {torch.__version__}"),
    ({"capability": "AVX1"}, f"is compiled for AVX1; here is {torch.backends.cpu.get_cpu_capability()}"),
    ({"device": "cuda"}, "is compiled for the device cuda, not cpu"),
    ({"instructions": ["avx1024", "amx_zeta", *cpu.instructions()]},
     "is compiled for a processor that has amx_zeta, avx1024; this one lacks them"),
], ids=["torch", "processor", "device", "instructions"])  # fmt: skip
def test_a_package_for_elsewhere(
    package: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(package[0], tmp_path / "copy"))
    engine = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps(engine | changes))
    with pytest.raises(StepFailed) as caught:
        runtimes.open(folder)
    assert caught.value.message == f"`{folder / 'model.pt2'}` {message}"


@pytest.mark.nightly  # compiling takes more than a minute
@COMPILER
def test_a_package_that_is_damaged_or_missing(package: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(package[0], tmp_path / "copy"))
    path = folder / "model.pt2"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StepFailed, match="cannot be loaded: "):
        runtimes.open(folder)
    path.unlink()
    with pytest.raises(StepFailed) as caught:
        runtimes.open(folder)
    assert caught.value.message == f"`{folder}` has no `model.pt2`, which its engine.json describes"
    (folder / "engine.json").write_text('{"format": "aotinductor"}')
    with pytest.raises(StepFailed) as caught:
        runtimes.open(folder)
    assert caught.value.message == (
        f"`{folder / 'engine.json'}` does not describe a compiled package: KeyError('vocabulary')"
    )


def complaints(folder: Path, **changes: str) -> list[tuple[str, str, str | None]]:
    checkpoint = facts(folder, "demo")
    checkpoint = replace(checkpoint, config=ModelConfig.of({**checkpoint.config.raw, **changes}))
    given = Inputs(checkpoint, {}, {}, machine_facts("cpu"))
    params = {"precision": "fp32"}
    assert find(KIND).estimate(params, given).memory > 1 << 30
    assert (find(KIND).outcome(params, given).engine or {})["vocabulary"] == 96
    return [(d.code, d.message, d.help) for d in find(KIND).check(params, given)]


def test_a_package_is_compiled_again_for_another_processor() -> None:
    """The key of a step holds what its code is for, so that a shared store gives no package to the wrong machine."""
    here = kinds.environment(find(KIND), {}, machine_facts("cpu"))
    assert here == kinds.environment(find(KIND), {}, machine_facts("cpu"))
    other = replace(machine_facts("cpu"), instructions=("avx",))
    assert kinds.environment(find(KIND), {}, other) != here
    gpu = replace(machine_facts("cpu"), device="cuda", gpu_name="NVIDIA H100")
    assert kinds.environment(find(KIND), {}, gpu) == {"gpu": "NVIDIA H100"}


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    remedy = "install one: `apt install g++`"
    assert complaints(folder) == [
        ("R486", "`build.compile` needs a C++ compiler, and there is none: no g++, no clang++", remedy)
    ]
    monkeypatch.setenv("CXX", "icpx -O3")
    assert complaints(folder) == [
        ("R486", "`build.compile` needs a C++ compiler, and `icpx -O3`, which CXX names, is not there", remedy)
    ]


def test_a_type_that_was_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "compiler", lambda: "g++")
    folder = tiny.save(tmp_path)
    assert complaints(folder) == []
    found = complaints(folder, model_type="bloom")
    assert [code for code, _, _ in found] == ["R477"]

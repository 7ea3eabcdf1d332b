"""The machine, without torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import Diagnostic, MachineError
from runner.plan import machine


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What is remembered of the machine, forgotten."""
    for function in (machine.machine_facts, machine.find_gpu, machine.cpu_flops):
        function.cache_clear()
    yield
    for function in (machine.machine_facts, machine.find_gpu, machine.cpu_flops):
        function.cache_clear()


def cgroup(monkeypatch: pytest.MonkeyPatch, root: Path, **files: str) -> None:
    """A cgroup `/job/inner` whose files are given as folder__name."""
    monkeypatch.setattr(machine, "_CGROUP", root)
    monkeypatch.setattr(machine, "_physical", lambda: (64 * 2**30, 32 * 2**30))
    for name, content in files.items():
        folder, _, file = name.partition("__")
        path = root / {"job": "job", "inner": "job/inner"}[folder] / file.replace("_", ".", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(machine, "_cgroups", lambda: iter([root / "job" / "inner", root / "job", root]))


def test_facts_of_this_machine() -> None:
    facts = machine.machine_facts("cpu")
    assert facts.device == "cpu"
    assert 1 <= facts.cpus <= (os.cpu_count() or 1)
    assert 2**28 < facts.memory_available <= facts.memory
    assert 1e9 < facts.flops < 1e15


def test_the_limit_of_an_outer_cgroup_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cgroup(
        monkeypatch, tmp_path, job__memory_max=f"{8 * 2**30}\n", job__memory_current=f"{3 * 2**30}\n",
        job__memory_stat=f"anon 5\ninactive_file {2**30}\n", inner__memory_max="max\n",
    )  # fmt: skip
    assert machine.memory() == (8 * 2**30, 6 * 2**30)


def test_no_cgroup_limits_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cgroup(monkeypatch, tmp_path)
    assert machine.memory() == (64 * 2**30, 32 * 2**30)


def test_cpu_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    cgroup(monkeypatch, tmp_path, job__cpu_max="250000 100000\n", inner__cpu_max="max 100000\n")
    assert machine.cpu_count() == 3


def nvidia_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def versions(monkeypatch: pytest.MonkeyPatch, torch: str) -> None:
    monkeypatch.setattr(machine, "package_version", lambda package: torch)


def test_a_gpu_is_used_where_torch_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvidia_smi(monkeypatch, tmp_path, "echo 'NVIDIA H100 80GB HBM3, 81559'")
    versions(monkeypatch, "2.13.0+cu130")
    facts = machine.machine_facts("auto")
    assert (facts.device, facts.gpu_name, facts.device_memory) == ("cuda", "NVIDIA H100 80GB HBM3", 81559 * 2**20)
    assert facts.flops == 4e14


def test_a_cpu_build_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvidia_smi(monkeypatch, tmp_path, "echo 'NVIDIA T4, 15360'")
    versions(monkeypatch, "2.13.0+cpu")
    assert machine.resolve_device("auto") == "cpu"
    with pytest.raises(MachineError) as caught:
        machine.resolve_device("cuda")
    assert caught.value.message == "the device `cuda` was asked for, but torch 2.13.0+cpu is built for the CPU alone"
    assert caught.value.help == "install a CUDA build of torch, or use `--device cpu`"


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvidia_smi(monkeypatch, tmp_path, "echo 'no devices were found' >&2; exit 6")
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    assert machine.resolve_device("auto") == "cpu"
    with pytest.raises(MachineError) as caught:
        machine.resolve_device("cuda")
    assert caught.value.message == "the device `cuda` was asked for, but this machine shows no NVIDIA GPU"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str) -> None:
    nvidia_smi(monkeypatch, tmp_path, "echo 'NVIDIA T4, 15360'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.find_gpu() is None


def test_a_refusal_is_told_with_its_place() -> None:
    refusal = machine.MachineRefusal([Diagnostic("R501", "too big", "lower it"), Diagnostic("R502", "no room")])
    assert refusal.render() == "error[R501]: too big\nhelp: lower it\n\nerror[R502]: no room"
    assert (refusal.message, refusal.exit_code) == ("too big\nno room", 4)


def test_free_disk_of_a_folder_to_come(tmp_path: Path) -> None:
    assert machine.free_disk(tmp_path / "not" / "yet") > 0

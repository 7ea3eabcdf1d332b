"""Check what this machine and this installation can do. torch is imported in a separate process."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.job.environment import cpu_model
from runner.plan.machine import machine_facts
from runner.progress import units
from runner.system.cpu import fast_bf16, flags

OLDEST_PYTHON = (3, 11)
LITTLE_MEMORY = 4e9
LITTLE_DISK = 10e9
TORCH_SECONDS = 120  # a cold import from a slow disk takes long
TORCH_PROBE = """
import json, torch
gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
print(json.dumps({
    "version": torch.__version__,
    "threads": torch.get_num_threads(),
    "cuda": torch.version.cuda,
    "gpus": [torch.cuda.get_device_name(i) for i in gpus],
}))
"""


@dataclass(frozen=True)
class Finding:
    """`level`: "ok", "warn" (some things are slower or missing) or "fail" (nothing works until it is fixed)."""

    name: str
    level: str
    text: str
    remedy: str | None = None


def examine(jobs: Path) -> list[Finding]:
    """Return every finding, the base requirements first."""
    torch, probed = _torch()
    return [
        _python(),
        torch,
        *_base(),
        *_processor(),
        _memory(),
        _gpu(probed),
        *_engines(probed),
        *_extras(),
        *_jobs(jobs),
    ]


def _python() -> Finding:
    text = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "fail", text, "install Python 3.11 or later")
    return Finding("python", "ok", text)


def _torch() -> tuple[Finding, dict[str, Any]]:
    """Check that torch starts; return the finding, and the facts that TORCH_PROBE prints."""
    if _version("torch") is None:
        return Finding("torch", "fail", "not installed", "pip install torch"), {}
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH_PROBE], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("torch", "fail", f"did not start within {TORCH_SECONDS} s", "look at the disk it lies on"), {}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        text = f"{_version('torch')} does not start: {last}"
        return Finding("torch", "fail", text, "pip install --force-reinstall torch"), {}
    facts = json.loads(done.stdout)
    build = f"CUDA {facts['cuda']}" if facts["cuda"] else "no CUDA"
    return Finding("torch", "ok", f"{facts['version']}, {build}, {units.plural(facts['threads'], 'thread')}"), facts


def _base() -> list[Finding]:
    """Check the required packages."""
    missing = [name for name in requirements() if _version(name) is None]
    if missing:
        return [Finding("packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")]
    versions = ", ".join(f"{name} {_version(name)}" for name in ("transformers", "safetensors", "compressed-tensors"))
    return [Finding("packages", "ok", versions)]


def _processor() -> list[Finding]:
    found = flags()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "avx512f": "AVX512", "avx2": "AVX2", "asimd": "NEON"}
    has = [name for flag, name in known.items() if flag in found]
    text = f"{cpu_model()}, {units.plural(cores, 'core')}, {', '.join(has) or 'no vector units known'}"
    fast = "bf16" if fast_bf16() else "float32"
    speed = f"models stored in bf16 are computed in {fast}, which it multiplies faster"
    return [Finding("processor", "ok", f"{text}; {speed}")]


def _memory() -> Finding:
    machine = machine_facts("cpu")
    text = f"{units.size(machine.memory)}, {units.size(machine.memory_available)} available"
    if machine.memory_available < LITTLE_MEMORY:
        return Finding("memory", "warn", text, "`runner plan` shows what a recipe needs; close other programs")
    return Finding("memory", "ok", text)


def _gpu(probed: dict[str, Any]) -> Finding:
    if probed.get("gpus"):
        return Finding("gpu", "ok", ", ".join(probed["gpus"]))
    present = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if present and probed:
        remedy = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        return Finding("gpu", "warn", "there is one, but torch cannot use it: steps run on the CPU", remedy)
    return Finding("gpu", "ok", "none: steps run on the CPU")


def _engines(probed: dict[str, Any]) -> list[Finding]:
    """Check which engines this machine can build, and which it can run. Nothing is imported."""
    gpu = bool(probed.get("gpus"))
    runs = "runs it" if gpu else "runs it on a machine with a GPU"
    graph = [name for name in ("onnx", "onnxscript") if _version(name) is None]
    return [
        _engine("onnx engine", "build.onnx", graph, ["onnxruntime"], "onnx", "builds and runs it"),
        _engine("rtx engine", "build.tensorrt", graph, ["tensorrt-rtx"], "tensorrt", f"builds it, {runs}"),
        _enterprise(gpu, graph),
        _compiled(),
        _engine("gguf engine", "build.gguf", [], ["gguf"], "gguf", "builds and runs it"),
    ]


def _engine(name: str, kind: str, graph: list[str], packages: list[str], extra: str, can: str) -> Finding:
    missing = [*graph, *(package for package in packages if _version(package) is None)]
    if missing:
        text = f"`{kind}` cannot: without {', '.join(missing)}"
        return Finding(name, "warn", text, f"pip install 'runner[{extra}]'")
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    return Finding(name, "ok", f"{can}: {versions}")


def _enterprise(gpu: bool, graph: list[str]) -> Finding:
    """Check `flavour: enterprise`, which needs its package and a GPU; a missing GPU is no fault."""
    name, version = "trt engine", _version("tensorrt")
    if not gpu:
        return Finding(
            name, "ok", "neither builds nor runs it: no GPU that torch can use; `flavour: rtx` builds without one"
        )
    if version is None or graph:
        missing = [*graph, *([] if version else ["tensorrt"])]
        return Finding(name, "warn", f"cannot: without {', '.join(missing)}", "pip install 'runner[tensorrt]' tensorrt")
    return Finding(name, "ok", f"builds and runs it: tensorrt {version}")


def _compiled() -> Finding:
    """Check for the C++ compiler that AOTInductor needs to build; packages run without it."""
    wanted = os.environ.get("CXX") or "g++"
    found = next((path for program in (wanted, "clang++") if (path := shutil.which(program))), None)
    if found is None:
        text = "`build.compile` cannot build: there is no C++ compiler; packages built elsewhere run"
        return Finding("aot engine", "warn", text, "install g++ (Debian: apt install g++), or set CXX")
    return Finding("aot engine", "ok", f"builds and runs it: {found}")


def _extras() -> list[Finding]:
    """Check the packages of every extra of this installation."""
    findings = []
    for extra in extras():
        missing = [name for name in requirements(extra) if _version(name) is None]
        if missing:
            remedy = f"pip install 'runner[{extra}]'"
            findings.append(Finding(f"extra {extra}", "warn", f"without {', '.join(missing)}", remedy))
        else:
            text = ", ".join(f"{name} {_version(name)}" for name in requirements(extra))
            findings.append(Finding(f"extra {extra}", "ok", text))
    return findings


def _jobs(jobs: Path) -> list[Finding]:
    """Check that the jobs folder is writable and has hard links and free space. Leaves no file there."""
    folder = jobs.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as scratch:
            file, link = Path(scratch, "file"), Path(scratch, "link")
            file.write_text("x", encoding="utf-8")
            try:
                os.link(file, link)
                links = Finding("hard links", "ok", "jobs share the files of the store")
            except OSError as error:
                text = f"not possible here ({error.strerror}): jobs copy the files of the store"
                links = Finding("hard links", "warn", text, "put the jobs folder on a file system that has them")
    except OSError as error:
        remedy = "name another with --jobs or RUNNER_JOBS"
        return [Finding("jobs folder", "fail", f"{jobs} cannot be written: {error.strerror}", remedy)]
    free = shutil.disk_usage(folder).free
    text = f"{jobs.absolute()}, {units.size(free)} free"
    if free < LITTLE_DISK:
        remedy = "`runner plan` shows what a recipe needs; `runner jobs rm` frees room"
        return [Finding("jobs folder", "warn", text, remedy), links]
    return [Finding("jobs folder", "ok", text), links]


def extras() -> list[str]:
    """Return the extras that users may install."""
    try:
        found = importlib.metadata.metadata("runner").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return sorted(set(found) - {"dev"})


def requirements(extra: str | None = None) -> list[str]:
    """Return the names of the packages that the base, or an extra, requires."""
    try:
        lines: Iterable[str] = importlib.metadata.requires("runner") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    names = []
    for line in lines:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        of = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if name and (of.group(1) if of else None) == extra:
            names.append(name.group())
    return names


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

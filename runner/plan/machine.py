"""The machine as the planner sees it: processors, memory, GPU and rough rates. No torch, no further packages."""

from __future__ import annotations

import functools
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from runner.contracts.step_kind import MachineFacts
from runner.errors import Diagnostic, MachineError
from runner.system import installed
from runner.system.cpu import fast_bf16, flags, instructions

_DISK_BYTES_PER_SECOND = 5e8  # written and synced; a slow SSD, a fast hard disk
_MEASURED_SECONDS = 0.01
_CGROUP = Path("/sys/fs/cgroup")

# Dense bf16 products that a GPU sustains, in operations a second, by a part of its name.
_GPU_FLOPS = (("H200", 4e14), ("H100", 4e14), ("A100", 2e14), ("L40", 1.5e14), ("4090", 1.3e14), ("T4", 3e13))
_GPU_FLOPS_ELSE = 5e13
_NO_GPU = ("this machine shows no NVIDIA GPU", "use `--device cpu`, or check `nvidia-smi` and CUDA_VISIBLE_DEVICES")


class MachineRefusal(MachineError):
    """The machine cannot do what the recipe asks; `diagnostics` have the places in the recipe, codes R5xx."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(d.message for d in self.diagnostics), self.diagnostics[0].help)

    def render(self) -> str:
        return "\n\n".join(d.render() for d in self.diagnostics)


@functools.cache
def machine_facts(device: str = "auto") -> MachineFacts:
    """Return the facts of this machine, with `device` ("auto", "cpu", "cuda") resolved.

    Raises MachineError for a GPU that is not there.
    """
    resolved = resolve_device(device)
    gpu = find_gpu() if resolved == "cuda" else None
    total, available = memory()
    return MachineFacts(
        cpus=cpu_count(),
        memory=total,
        memory_available=min(available, total),
        device=resolved,
        device_memory=gpu[1] if gpu else 0,
        gpu_name=gpu[0] if gpu else None,
        flops=gpu_flops(gpu[0]) if gpu else cpu_flops(),
        disk_bytes_per_second=_DISK_BYTES_PER_SECOND,
        instructions=tuple(instructions()),
    )


def resolve_device(device: str) -> str:
    """Return "cpu" or "cuda"; "auto" is "cuda" where there is an NVIDIA GPU and a torch that can use it."""
    if device == "cpu":
        return "cpu"
    reason = no_cuda() if find_gpu() is not None else _NO_GPU
    if reason is None:
        return "cuda"
    if device == "auto":
        return "cpu"
    raise MachineError(f"the device `cuda` was asked for, but {reason[0]}", reason[1])


def no_cuda() -> tuple[str, str] | None:
    """Return why the installed torch cannot use a GPU, and the remedy; None where it can."""
    version = package_version("torch") or ""
    if version.endswith("+cpu"):
        return f"torch {version} is built for the CPU alone", "install a CUDA build of torch, or use `--device cpu`"
    return None


def package_version(package: str) -> str | None:
    """Return the version of an installed package, without importing it."""
    return installed.version(package)


@functools.cache
def find_gpu() -> tuple[str, int] | None:
    """Return (name, bytes of memory) of the first NVIDIA GPU that CUDA would show, or None."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = visible.split(",")[0].strip() if visible is not None else "0"
    if first in ("", "-1", "NoDevFiles"):
        return None
    program = shutil.which("nvidia-smi")
    if program is not None:
        command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits", "-i", first]
        try:
            output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
            name, _, mebibytes = output.strip().splitlines()[0].rpartition(",")
            return name.strip(), int(mebibytes) * 2**20
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            pass  # the driver does not answer; /proc may still name the GPU
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text("utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("Model")), "NVIDIA GPU")
        return model, 0
    return None


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """Return the NVIDIA GPUs that CUDA would show, each as CUDA_VISIBLE_DEVICES names it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return tuple(names[: next((i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))])
    if find_gpu() is None:
        return ()
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=10, check=True).stdout
            count = sum(line.startswith("GPU ") for line in listed.splitlines())
            return tuple(str(index) for index in range(max(1, count)))
        except (OSError, subprocess.SubprocessError):
            pass  # as in find_gpu: the driver does not answer
    return tuple(str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*/information"))) or ("0",)


def gpu_flops(name: str) -> float:
    return next((rate for part, rate in _GPU_FLOPS if part in name), _GPU_FLOPS_ELSE)


def cpu_count() -> int:
    """Return the processors that this process may use: its affinity, and the quota of its cgroup."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups():
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def memory() -> tuple[int, int]:
    """Return (total, available now) in bytes, within the limit of the process's cgroup."""
    total, available = _physical()
    for folder in _cgroups():
        limit = _read(folder / "memory.max").strip()
        if not limit.isdigit():
            continue
        used = _read(folder / "memory.current").strip()
        cache = next((line.split()[1] for line in _read(folder / "memory.stat").splitlines()
                      if line.startswith("inactive_file ")), "0")  # fmt: skip
        total = min(total, int(limit))
        available = min(available, int(limit) - int(used or 0) + int(cache))
    old = _read(_CGROUP / "memory" / "memory.limit_in_bytes").strip()  # cgroup v1
    if old.isdigit():
        total = min(total, int(old))
    return total, max(0, min(available, total))


def _physical() -> tuple[int, int]:
    if sys.platform == "win32":
        return _physical_windows()
    lines = [line.partition(":") for line in _read(Path("/proc/meminfo")).splitlines()]
    fields = {name: value.split()[0] for name, _, value in lines if value.strip()}
    if "MemTotal" in fields:
        total = int(fields["MemTotal"]) * 1024
        return total, int(fields.get("MemAvailable", fields["MemTotal"])) * 1024
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total


def _physical_windows() -> tuple[int, int]:
    import ctypes

    # MEMORYSTATUSEX: its size, the load in percent, then seven 64-bit counts, of which the first two are used.
    buffer = (ctypes.c_uint32 * 16)()
    buffer[0] = ctypes.sizeof(buffer)
    ctypes.__dict__["windll"].kernel32.GlobalMemoryStatusEx(ctypes.byref(buffer))
    return buffer[2] | buffer[3] << 32, buffer[4] | buffer[5] << 32


def _cgroups() -> Iterator[Path]:
    """Yield the folders of this process's cgroup (version 2) and of those around it, which limit it too."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            inside = Path(line[3:].lstrip("/"))
            yield from (_CGROUP / folder for folder in (inside, *inside.parents))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


@functools.cache
def cpu_flops() -> float:
    """Return operations a second of matrix products on all processors; bf16 units would do more.

    One processor is measured for a few milliseconds of its own time, which other load of the machine does not change,
    on products so small that BLAS starts no thread.
    """
    import numpy as np

    size, count = 64, 16
    left = np.full((count, size, size), 0.5, np.float32)
    best = math.inf
    deadline = time.thread_time() + _MEASURED_SECONDS
    while (start := time.thread_time()) < deadline or best == math.inf:
        _ = left @ left
        best = min(best, time.thread_time() - start)
    gain = 1.0 if not fast_bf16() else 6.0 if "amx_bf16" in flags() else 1.5
    return 2 * size**3 * count / best * cpu_count() * gain


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk where a folder is, or would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free

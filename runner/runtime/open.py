"""Open the runtime of a folder: an engine, of the format in engine.json, or a checkpoint.

A module `runner.runtime.<format>` has `open(folder, device, threads) -> Runtime`; it is imported only when needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from runner.errors import MachineError, RecipeError, StepFailed, UsageError
from runner.runtime.protocol import Runtime

ENGINE_FILE = "engine.json"


class Format(NamedTuple):
    """The runtime of a format: its module, and the packages of which one is needed (none: no extra package)."""

    module: str
    packages: tuple[str, ...]
    extra: str


FORMATS: Mapping[str, Format] = {
    "onnx": Format("runner.runtime.onnxruntime", ("onnxruntime",), "onnx"),
    "tensorrt": Format("runner.runtime.tensorrt", ("tensorrt_rtx", "tensorrt"), "tensorrt"),
    "aotinductor": Format("runner.runtime.aotinductor", (), ""),
    "executorch": Format("runner.runtime.executorch", ("executorch",), "executorch"),
    "gguf": Format("runner.runtime.gguf", ("gguf",), "gguf"),
}


def open(folder: Path, device: str = "cpu", threads: int | None = None) -> Runtime:
    """Return the runtime of the engine or checkpoint in `folder` on `device` ("cpu" or "cuda") with `threads` threads.

    UsageError for a folder that holds neither, StepFailed for an invalid engine.json, MachineError where a package is
    missing; and the errors of the runtime itself.
    """
    require(folder)
    described = engine(folder)
    if described is None:
        return _checkpoint(folder, device, threads)
    name = described.get("format")
    found = FORMATS.get(name) if isinstance(name, str) else None
    if found is None:
        known = ", ".join(FORMATS)
        raise StepFailed(
            f"`{folder / ENGINE_FILE}` has the format {json.dumps(name)}; known are {known}", "build it again"
        )
    if found.packages and not any(importlib.util.find_spec(package) for package in found.packages):
        wanted = " or ".join(found.packages)
        message = f"an engine of the format {name} needs the package {wanted}, which is not installed"
        raise MachineError(message, f"`pip install 'runner[{found.extra}]'`")
    return cast(Runtime, importlib.import_module(found.module).open(folder, device, threads))


def engine(folder: Path) -> Mapping[str, Any] | None:
    """Read engine.json of an engine's folder; None where there is none. StepFailed where it cannot be read."""
    path = folder / ENGINE_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StepFailed(f"`{path}` cannot be read as JSON: {error}", "build it again") from None
    if not isinstance(found, dict):
        raise StepFailed(f"`{path}` must hold a JSON object; it holds a {type(found).__name__}", "build it again")
    return found


def require(folder: Path) -> None:
    """Raise UsageError unless `folder` holds an engine or a checkpoint, by the names of its files."""
    if not any((folder / name).is_file() for name in (ENGINE_FILE, "config.json", "adapter_config.json")):
        raise UsageError(
            f"`{folder}` holds neither an engine ({ENGINE_FILE}) nor a checkpoint (config.json)",
            "name a job, or a folder that one of its steps wrote",
        )


def _checkpoint(folder: Path, device: str, threads: int | None) -> Runtime:
    import torch

    from runner.runtime.transformers import Transformers

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return Transformers(folder, device)
    except RecipeError as error:  # no recipe is involved here: the folder was named
        raise StepFailed(error.message, error.diagnostics[0].help) from error

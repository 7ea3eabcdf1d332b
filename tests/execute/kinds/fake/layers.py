"""A step of layers that computes nothing, but can be told to misbehave.

`params`: layers, size (bytes of a layer), pause (seconds that a layer takes), trace (a file that gets one line for
every finished layer), control (a file of JSON {"layer", "do"}: what to do when a layer begins; without the file,
nothing).
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Context, Cost, Inputs, Requirement, Result
from runner.errors import Diagnostic, MachineError, StepFailed

VERSION = 1
CONSUMES = ("checkpoint",)
PRODUCES = "checkpoint"
REQUIRES: tuple[Requirement, ...] = ()
LIBRARIES: tuple[str, ...] = ()  # it computes nothing with torch
METRICS = ("quality",)


def check(params: Any, inputs: Inputs) -> list[Diagnostic]:
    return []


def estimate(params: Any, inputs: Inputs) -> Cost:
    return Cost(0, 0, 0, 0.0)


def source_facts(inputs: Inputs) -> CheckpointFacts:
    """Without tensors: what it writes is no safetensors file."""
    return dataclasses.replace(inputs.checkpoint, tensors={})


def outcome(params: Any, inputs: Inputs) -> CheckpointFacts:
    return source_facts(inputs)


def run(ctx: Context) -> Result:
    layers, size = ctx.params.get("layers", 4), ctx.params.get("size", 64)
    progress = ctx.out_dir.parent / "progress.json"
    try:
        done = json.loads(progress.read_text())["layer"]
    except (OSError, ValueError, KeyError):
        done = 0
    source = ctx.inputs["checkpoint"]
    for layer in range(done, layers):
        ctx.safe_point()
        misbehave(ctx, layer)
        time.sleep(ctx.params.get("pause", 0.0))
        salt = f"{source.digest}/{ctx.seed}/{layer}".encode()
        part = (hashlib.sha256(salt).digest() * (size // 32 + 1))[:size]
        replace(ctx.scratch_dir / f"part-{layer}", part)
        replace(progress, json.dumps({"layer": layer + 1, "layers": layers}).encode())
        if "trace" in ctx.params:
            with open(ctx.params["trace"], "a") as file:
                file.write(f"{ctx.seed} {layer}\n")
        ctx.emit("layer", layer=layer + 1, layers=layers, seconds=0.0, error=None)
    whole = b"".join((ctx.scratch_dir / f"part-{layer}").read_bytes() for layer in range(layers))
    (ctx.out_dir / "shards").mkdir(exist_ok=True)
    (ctx.out_dir / "shards" / "model.bin").write_bytes(whole)
    (ctx.out_dir / "README.md").write_text(f"made with {ctx.recipe_text}")
    return Result({"quality": ctx.params.get("quality", 1.0), "layers": layers}, {"input": str(source.type)})


def replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(data)
    temporary.replace(path)


def misbehave(ctx: Context, layer: int) -> None:  # noqa: C901 - a flat list of ways to end, one a case
    control = Path(ctx.params.get("control", "/nonexistent"))
    if not control.exists():
        return
    order = json.loads(control.read_text())
    if order["layer"] != layer:
        return
    print("about to", order["do"])
    print("on standard error", file=sys.stderr)
    sys.stdout.flush()
    match order["do"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "bus":
            os.kill(os.getpid(), signal.SIGBUS)
        case "crash":
            ctypes.string_at(0)
        case "leave":
            os._exit(7)
        case "raise":
            raise KeyError("some_tensor")
        case "exit":
            sys.exit(3)
        case "fail":
            raise StepFailed("tensor `a` of model.safetensors holds 3 NaN", "download the model again")
        case "machine":
            raise MachineError("there is no GPU", "use `--device cpu`")
        case "memory":
            raise MemoryError
        case "torch-memory":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes")
        case "wait":
            control.with_suffix(".reached").touch()
            while True:
                ctx.safe_point()
                time.sleep(0.005)
        case "hang":
            control.with_suffix(".reached").touch()
            while True:
                time.sleep(0.005)

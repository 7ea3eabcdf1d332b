"""The process that builds a TensorRT engine: `python -m runner.export.tensorrt_builder` in the folder of the graph.

It reads order.json there and writes built.json: the fields of runner.export.tensorrt.Built, or {"error": {type,
message, help}}. It exits when its standard input is closed.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.errors import MachineError, RunnerError, StepFailed
from runner.export.tensorrt import (
    ANSWER,
    ENTERPRISE,
    MODULES,
    NAMES,
    ORDER,
    PORTABLE,
    Built,
    Order,
    complaints,
    is_memory,
    quoted,
)  # fmt: skip
from runner.model.checkpoint.safetensors_writer import write_all, written
from runner.system import peak_memory


def build(order: Order) -> Built:
    """Parse the graph, build the engine, and write it atomically."""
    trt = _module(order.flavour)
    name = f"{NAMES[order.flavour]} {trt.__version__}"
    log = complaints(trt)
    capabilities = _gpu(name) if order.flavour == ENTERPRISE else (order.capabilities or list(PORTABLE))
    builder = trt.Builder(log)
    # From version 11 on every network is strongly typed, and the flag may be missing.
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(order.graph):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise StepFailed(f"{name} cannot read the graph {order.graph}: {quoted(errors)}", _REBUILD)
    config = _configured(trt, builder, network, order)
    timings = _timings(config, order.timing_cache)
    log.errors.clear()  # those about an unusable timing cache
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if plan is None:
        raise _refused(name, log.errors)
    with written(Path(order.engine)) as file:
        write_all(file, memoryview(plan))
    if order.timing_cache is not None and timings is not None:
        path = Path(order.timing_cache)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as file:
            write_all(file, memoryview(timings.serialize()))
    return Built(
        version=trt.__version__,
        seconds=seconds,
        memory=peak_memory.peak(),
        engine_bytes=plan.nbytes,
        weights_bytes=log.weights,
        capabilities=capabilities,
        inputs=[_tensor(network.get_input(i)) for i in range(network.num_inputs)],
        outputs=[_tensor(network.get_output(i)) for i in range(network.num_outputs)],
    )


_REBUILD = "please report it with the recipe: the graph is this program's own"


def _module(flavour: str) -> Any:
    try:
        return importlib.import_module(MODULES[flavour])
    except ImportError as error:
        remedy = "`pip install tensorrt`" if flavour == ENTERPRISE else "`pip install 'runner[tensorrt]'`"
        raise MachineError(f"{NAMES[flavour]} cannot be imported: {error}", remedy) from error


def _configured(trt: Any, builder: Any, network: Any, order: Order) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.workspace)
    if order.capabilities is not None:
        config.num_compute_capabilities = len(order.capabilities)
        for index, capability in enumerate(order.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), index)
    wanted = [network.get_input(index).name for index in range(network.num_inputs)]
    for name, ranges in order.profiles.items():
        profile = builder.create_optimization_profile()
        for tensor in wanted:
            if tensor not in ranges:
                raise StepFailed(
                    f"the graph has the input `{tensor}`, for which the profile `{name}` has no shapes", _REBUILD
                )
            profile.set_shape(tensor, *ranges[tensor])
        config.add_optimization_profile(profile)
    return config


def _timings(config: Any, path: str | None) -> Any:
    """Return the timing cache in use; one of another version, or an unreadable one, is replaced by an empty one."""
    if path is None:
        return None
    stored = b""
    with suppress(FileNotFoundError):
        stored = Path(path).read_bytes()
    for content in (stored, b""):
        found = config.create_timing_cache(content)
        if found is not None and config.set_timing_cache(found, False):
            return found
    return None


def _gpu(name: str) -> list[str]:
    import torch

    if not torch.cuda.is_available():
        raise MachineError(f"{name} builds for the GPU of this machine, and torch finds none", _NO_GPU)
    major, minor = torch.cuda.get_device_capability()
    return [f"{major}.{minor}"]


_NO_GPU = "use `flavour: rtx`, which builds without one, or a machine with a GPU"


def _refused(name: str, errors: Sequence[str]) -> RunnerError:
    text = quoted(errors)
    if "workspace limit" in text:
        return StepFailed(f"{name} finds no way to compute the graph within `workspace`: {text}", "raise `workspace`")
    if is_memory(text):
        return MachineError(f"{name} ran out of memory: {text}", "use a machine with more memory, or lower `workspace`")
    return StepFailed(f"{name} cannot build an engine of the graph: {text}", "the log of the step has all its messages")


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "type": tensor.dtype.name.lower(), "shape": [int(size) for size in tensor.shape]}


def _end_with_parent() -> None:
    while os.read(0, 1):  # nothing is written there; it is closed when the parent process ends
        pass
    os._exit(1)


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer: dict[str, Any]
    try:
        answer = asdict(build(Order(**json.loads(Path(ORDER).read_text(encoding="utf-8")))))
    except RunnerError as error:
        answer = {"error": {"type": type(error).__name__, "message": error.message, "help": error.help}}
    with written(Path(ANSWER)) as file:
        write_all(file, json.dumps(answer).encode())


if __name__ == "__main__":
    main()

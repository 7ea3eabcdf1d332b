"""Write the folder of a TensorRT engine: engine, engine.json, config.json, tokenizer, and a README on how to run it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from runner.contracts.context import Context
from runner.contracts.model_config import ModelConfig
from runner.errors import StepFailed
from runner.export import companions, compressed, graph
from runner.export.tensorrt import NAMES, RTX, Built, Order
from runner.model.checkpoint import headers
from runner.model.checkpoint.companions import write_json

ENGINE = "engine.json"


@dataclass(frozen=True)
class Weights:
    """Bytes of a graph's weights: `total`, `packed` (the quantized ones with scales), `unpacked` (these at 16 bits)."""

    total: int
    packed: int
    unpacked: int


def weights(path: Path) -> Weights:
    """Return the weights of a graph with DequantizeLinear. Reads the graph, not its data."""
    model = onnx.load(str(path), load_external_data=False)
    elements = {item.name: math.prod(item.dims) for item in model.graph.initializer}
    sizes = {item.name: _bytes(item) for item in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in sizes]
    # Scales of groups of NVFP4 are dequantized themselves.
    scales = {node.input[1] for node in nodes} & {node.output[0] for node in nodes}
    packed = sum(sizes.get(name, 0) for node in nodes for name in node.input[:2])
    unpacked = sum(2 * elements[node.input[0]] for node in nodes if node.output[0] not in scales)
    return Weights(sum(sizes.values()), packed, unpacked)


def _bytes(item: onnx.TensorProto) -> int:
    count = int(math.prod(item.dims))
    if item.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1):
        return (count + 1) // 2
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize)


def graph_facts(folder: Path, checkpoint: str) -> Mapping[str, Any]:
    """Read engine.json of an ONNX graph. StepFailed unless it was made from the checkpoint with this digest."""
    path = folder / ENGINE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made_of = str(found["source"]["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepFailed(f"`{path}` does not describe an ONNX graph: {error!r}", "build it again") from None
    if made_of != checkpoint:
        message = f"the graph in `{folder}` was made of the checkpoint {made_of[:12]}, not of {checkpoint[:12]}"
        raise StepFailed(message, "let `graph` and `from` name steps of one checkpoint")
    return found


def write(ctx: Context, order: Order, built: Built, described: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Move the engine from `work` into `ctx.out_dir`, write the files of its folder, and return engine.json.

    `described` is the graph's engine.json.
    """
    source, out = ctx.inputs["checkpoint"], ctx.out_dir
    config = headers.model_config(source.path)
    prefill, decode = order.profiles["prefill"], order.profiles["decode"]
    file = order.engine
    if ctx.params["compress"]:
        file += compressed.SUFFIX
        compressed.compress(work / order.engine, out / file)
    else:
        os.replace(work / order.engine, out / file)
    engine = {
        "format": "tensorrt",
        "flavour": order.flavour,
        "version": built.version,
        "file": file,
        "compute_capabilities": built.capabilities,
        "precision": ctx.params["precision"],
        "inputs": built.inputs,
        "outputs": built.outputs,
        "profiles": [
            {"name": name, "shapes": {tensor: _range(shapes) for tensor, shapes in ranges.items()}}
            for name, ranges in (("prefill", prefill), ("decode", decode))
        ],
        "source": {"digest": source.digest},
        "graph": _files(Path(order.graph)),
        "engine_bytes": built.engine_bytes,
        "file_bytes": (out / file).stat().st_size,
        "weights_bytes": built.weights_bytes,
        "context": prefill["input_ids"][2][1],
        "max_batch": prefill["input_ids"][2][0],
        "vocabulary": config.vocabulary_size,
        **{key: described[key] for key in ("layers", "kv_heads", "head_dim", "stored", "carried")},
    }
    companions.copy(source.path, out)
    shutil.copyfile(source.path / "config.json", out / "config.json")
    (out / "README.md").write_text(_card(engine, config), encoding="utf-8")
    write_json(out / ENGINE, engine)
    return engine


def _range(shapes: tuple[list[int], list[int], list[int]]) -> dict[str, list[int]]:
    return dict(zip(("min", "usual", "max"), shapes, strict=True))


def _files(path: Path) -> dict[str, str]:
    """Return the sha256 of graph and weights, by which another step can check that it compares the same graph."""
    found = {}
    for file in (path, path.with_name(Path(graph.DATA).name)):
        with file.open("rb") as opened:
            found[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def _card(engine: dict[str, Any], config: ModelConfig) -> str:
    """Return README.md: what the folder holds, and what it needs to run."""
    name = NAMES[engine["flavour"]]
    package = "tensorrt-rtx" if engine["flavour"] == RTX else "tensorrt"
    gpus = ", ".join(engine["compute_capabilities"][:-1])
    last = engine["compute_capabilities"][-1].replace("+", " or later")
    lines = [f"- {count} linear module{'' if count == 1 else 's'}: {text}." for text, count in engine["stored"].items()]
    count = engine["max_batch"]
    sequences = "one sequence" if count == 1 else f"up to {count:,} sequences"
    return _TEXT.format(
        model=config.model_type, name=name, package=package, engine=engine, file=ENGINE,
        gpus=f"{gpus} or {last}" if gpus else last, length=f"{engine['context']:,}", sequences=sequences,
        weights="\n".join(lines), packed=_PACKED if engine["file"].endswith(compressed.SUFFIX) else "",
    )  # fmt: skip


_TEXT = """# {model} as a {name} engine

`{engine[file]}` runs in {name} {engine[version]} alone (`pip install {package}=={engine[version]}`), on an NVIDIA GPU
of compute capability {gpus}. It takes up to {length} tokens of prompt and continuation, in {sequences} at once.

{weights}

## Run it

```sh
runner generate path/to/this/folder "prompt"
```
{packed}
It has two optimization profiles: 0, `prefill`, for a prompt with an empty cache, and 1, `decode`, for one token after a
cache. `input_ids`, `attention_mask`, `position_ids` and `past_key_values.N.key` and `.value` of {engine[layers]} layers
go in; `logits`, and the cache with the new tokens as `present.N.key` and `.value`, come out. `{file}` lists types and
shapes, and the checkpoint that this was made from.

Two builds of one checkpoint may differ in some bytes: TensorRT orders parts of an engine by addresses in memory.
"""
_PACKED = """
The file is compressed: `xz -dk model.engine.xz` gives the engine that TensorRT reads.
"""

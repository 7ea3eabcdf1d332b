"""Export a checkpoint to a graph, FILE, and its weights, DATA. Equal checkpoints give equal bytes.

Names of files and of dimensions are those that optimum writes, and by which transformers.js finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from runner.export.decoder import Shape, shape_of
from runner.export.external_data import DataFile
from runner.export.preflight import FUSED, STANDARD
from runner.export.table_layouts import BITS
from runner.export.tables import Calibration
from runner.export.tensorrt_inputs import TENSORRT_DOMAIN
from runner.export.trace import DOMAIN, trace
from runner.export.weights import MICROSOFT, Filler, Options
from runner.model.layerwise.streamed_model import StreamedModel

FILE = "onnx/model.onnx"
DATA = "onnx/model.onnx_data"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
_FLOATS = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}


@dataclass(frozen=True)
class Exported:
    """The exported graph, its files of weights by name.

    `inputs` and `outputs`: (name, numpy's dtype, sizes: numbers, or names of dynamic ones).

    `stored` counts the linear modules of the decoder layers by their scheme, `widened` those whose integers are in
    wider fields, by description.
    """

    file: str
    data: tuple[str, ...]
    opset: int
    shape: Shape
    inputs: tuple[tuple[str, str, tuple[int | str, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int | str, ...]], ...]
    stored: dict[str, int]
    widened: dict[str, int]
    nbytes: int


def export(
    checkpoint: Path,
    out: Path,
    *,
    target: str,
    precision: str = "fp32",
    opset: int = 21,
    accuracy_level: int = 1,
    embedding: str = "dense",
    calibrated: Calibration | None = None,
    operators: str = STANDARD,
    file: str = FILE,
    piece: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write the graph of a checkpoint, packed or dense, with its adapter if it has one, into the folder `out`.

    `target` is one of `graph_layouts.TARGETS`, `precision` of PRECISIONS: the type it computes in, `embedding` of
    `table_layouts.BITS`: how the token embedding and the head are stored, `calibrated` by what the one that multiplies
    is rounded, `operators` FUSED or STANDARD. `file` is the name of the graph, and `piece` the most bytes of a file of
    its weights. `progress` gets the number of modules written, and of all.

    RecipeError and StepFailed are those of the checkpoint's readers; StepFailed also where integers do not fit a layout
    exactly.
    """
    dtype = PRECISIONS[precision]
    streamed = StreamedModel(checkpoint, "cpu", dtype)
    model = trace(streamed, opset, fused=operators == FUSED)
    graph = model.graph
    path = out / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with DataFile(path.with_name(f"{path.name}_data"), piece) as data:
        options = Options(target, dtype, accuracy_level, BITS[embedding], calibrated)
        filler = Filler(graph, streamed, data, options)
        filler.fill(progress)
    streamed.reader.close()
    shape = shape_of(streamed.config)
    vocabulary = streamed.vocabulary_size
    inputs, outputs = _interface(shape, vocabulary, dtype)
    _clean(model)
    _name(graph, inputs, outputs)
    model.opset_imports.pop(DOMAIN, None)
    for domain in sorted({node.domain for node in graph} & {MICROSOFT, TENSORRT_DOMAIN}):
        model.opset_imports[domain] = 1
    if any(value.dtype == ir.DataType.FLOAT4E2M1 for value in graph.initializers.values()):
        # Its operators are the same in both sets, which 23 extends to 4-bit floats.
        opset, model.ir_version = 23, 11
        model.opset_imports[""] = opset
    ir.save(model, str(path))
    onnx.checker.check_model(str(path))
    return Exported(
        file=file,
        data=tuple(each.name for each in data.paths),
        opset=opset,
        shape=shape,
        inputs=tuple(_described(value) for value in inputs),
        outputs=tuple(_described(value) for value in outputs),
        stored=dict(sorted(filler.stored.items())),
        widened=dict(sorted(filler.widened.items())),
        nbytes=sum(each.stat().st_size for each in (path, *data.paths)),
    )


_Port = tuple[str, ir.DataType, tuple[int | str, ...]]


def _interface(shape: Shape, vocabulary: int, dtype: torch.dtype) -> tuple[list[_Port], list[_Port]]:
    cache = _FLOATS[dtype]
    batch, new, past, total = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
    inputs: list[_Port] = [
        ("input_ids", ir.DataType.INT64, (batch, new)),
        ("attention_mask", ir.DataType.INT64, (batch, total)),
        ("position_ids", ir.DataType.INT64, (batch, new)),
        *((name, cache, (batch, shape.kv_heads, past, shape.head_dim)) for name in shape.past),
    ]
    outputs: list[_Port] = [
        ("logits", ir.DataType.FLOAT, (batch, new, vocabulary)),
        *((name, cache, (batch, shape.kv_heads, total, shape.head_dim)) for name in shape.present),
    ]
    return inputs, outputs


def _described(port: _Port) -> tuple[str, str, tuple[int | str, ...]]:
    name, kind, sizes = port
    return name, str(kind.numpy()), sizes


def _clean(model: ir.Model) -> None:
    """Remove the exporter's metadata: stack traces, module paths, shapes of inner values."""
    model.producer_name, model.producer_version, model.domain, model.doc_string = "runner", None, None, None
    model.metadata_props.clear()
    graph = model.graph
    graph.name, graph.doc_string = "decoder", None
    graph.metadata_props.clear()
    for node in graph:
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.shape, value.type, value.doc_string = None, None, None
            value.metadata_props.clear()
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.doc_string = None
        value.metadata_props.clear()


def _name(graph: ir.Graph, inputs: list[_Port], outputs: list[_Port]) -> None:
    """Name inputs and outputs, and rename what the exporter numbered by its position in the graph."""
    own = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for number, node in enumerate(graph):
        if "/" not in (node.name or ""):
            node.name = f"{number}.{node.op_type}"
        for place, value in enumerate(node.outputs):
            if id(value) not in own:
                value.name = f"{node.name}:{place}" if place else node.name
    for number, value in enumerate(list(graph.initializers.values())):
        assert value.name is not None
        if value.name.startswith("model."):  # the wrapper's attribute
            continue
        if not isinstance(value.const_value, ir.ExternalTensor):
            _rename(graph, value, f"constant.{number}")
    for value, (name, kind, sizes) in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name, value.type, value.shape = name, ir.TensorType(kind), ir.Shape(sizes)


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    assert value.name is not None
    graph.initializers.pop(value.name)
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    graph.initializers[name] = value


def describe(exported: Exported) -> dict[str, Any]:
    """Return the part of engine.json that describes the graph."""
    return {
        "inputs": [{"name": n, "dtype": d, "shape": list(s)} for n, d, s in exported.inputs],
        "outputs": [{"name": n, "dtype": d, "shape": list(s)} for n, d, s in exported.outputs],
        "layers": exported.shape.layers,
        "kv_heads": exported.shape.kv_heads,
        "head_dim": exported.shape.head_dim,
        "stored": exported.stored,
        "carried": exported.widened,
    }

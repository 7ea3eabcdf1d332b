"""Check and describe a graph before it is made, from a checkpoint's headers. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from runner.contracts.context import DataFacts
from runner.contracts.facts import CheckpointFacts
from runner.contracts.sites import Site
from runner.errors import Diagnostic
from runner.export import graph_layouts, supported, table_layouts
from runner.model.checkpoint import adapter_config, formats
from runner.model.checkpoint.quantization import packed_names
from runner.model.checkpoint.quantization.scheme import Scheme, ceil_div

FLOAT_BYTES = {"fp32": 4, "fp16": 2}


def schemes(facts: CheckpointFacts) -> dict[str, tuple[Site, Scheme]]:
    """Return the packed linear modules of a checkpoint. ValueError where its quantization cannot be read."""
    packing = formats.parse(facts.quantization)
    if packing is None:
        return {}
    found = {}
    for linear in facts.sites:
        scheme = packing.scheme(linear.name)
        if scheme is not None and formats.of_module(facts.tensors, linear.name) is not None:
            found[linear.name] = (linear, scheme)
    return found


def refusals(facts: CheckpointFacts, target: str) -> list[Diagnostic]:
    """Return all reasons why a checkpoint cannot be exported to a graph for `target`."""
    found = []
    refused = supported.refuse(facts.config)
    if refused:
        found.append(Diagnostic("R477", *refused))
    if facts.adapter is not None and facts.adapter.get("use_dora"):
        found.append(
            Diagnostic(
                "R477",
                "the checkpoint has a DoRA adapter, whose branch depends on the base weights",
                "train it with `dora: false`, or merge it first (`merge: requantize`, on a dense checkpoint "
                "`merge: auto`)",
            )
        )
    return found + _weights(facts, target)


def _weights(facts: CheckpointFacts, target: str) -> list[Diagnostic]:
    try:
        packed = schemes(facts)
    except ValueError as error:
        return [Diagnostic("R478", f"the weights of `{facts.source}` cannot be exported: {error}")]
    if (facts.quantization or {}).get("desc_act"):
        return [
            Diagnostic(
                "R478",
                f"`{facts.source}` is quantized with `desc_act`: its groups are not in the order of its columns",
                "quantize the dense model with `quantize.gptq`, whose `act_order` keeps groups in order",
            )
        ]
    complaints: dict[tuple[str, str], list[str]] = {}
    for name, (linear, scheme) in packed.items():
        how = graph_layouts.layout_for(target, scheme, linear.columns)
        if not isinstance(how, graph_layouts.GraphLayout):
            complaints.setdefault(how, []).append(name)
    return [Diagnostic("R478", f"{listed(found)} {wrong}", remedy) for (wrong, remedy), found in complaints.items()]


def listed(names: list[str]) -> str:
    """Return the first of some modules, and how many more there are."""
    more = len(names) - 1
    return f"`{names[0]}`" + (f" (as {more:,} more)" if more else "")


def nbytes(facts: CheckpointFacts, target: str, precision: str, embedding: str = "dense") -> int:
    """Return the bytes of the graph's weights."""
    bits = table_layouts.BITS[embedding]
    value = FLOAT_BYTES[precision]
    packed = schemes(facts)
    wide = {packed_names.split(name)[0] for name, tensor in facts.tensors.items() if tensor.dtype == "F32"}
    total = 0
    for linear, scheme in packed.values():
        how = graph_layouts.layout_for(target, scheme, linear.columns)
        if isinstance(how, graph_layouts.GraphLayout):
            block = how.block or linear.columns
            groups = ceil_div(linear.columns, block)
            scale = value if target == graph_layouts.TENSORRT or linear.name in wide else FLOAT_BYTES["fp16"]
            scale = 1 if scheme.weights.two_level else scale
            total += linear.rows * (groups * block * how.field // 8 + groups * (scale + how.field // 8))
    for name, tensor in facts.tensors.items():
        if packed_names.split(name)[0] not in packed:
            if bits and table_layouts.is_table(facts, name):
                total += table_layouts.nbytes(tensor.shape[0], tensor.shape[1], bits)
            else:
                total += math.prod(tensor.shape) * value
    adapter = facts.adapter
    if adapter is None:
        return total
    return total + value * sum(adapter_config.rank_of(adapter, i.name) * (i.columns + i.rows) for i in facts.sites)


def largest(facts: CheckpointFacts) -> int:
    """Return the number of elements of the largest weight."""
    sizes = [i.size for i in facts.sites]
    vocabulary, hidden = facts.config.vocabulary_size, facts.config.hidden_size
    return max([*sizes, vocabulary * hidden])


def embedding(facts: CheckpointFacts, params: Mapping[str, Any]) -> str:
    """Return how a graph stores the token embedding and the head: as asked for, or chosen.

    `auto` is INT8 for onnxruntime where layers are integers, too, and blocks divide the columns.
    """
    if params["embedding"] != table_layouts.AUTO:
        return str(params["embedding"])
    try:
        integers = params["target"] != graph_layouts.TENSORRT and schemes(facts)
    except ValueError:  # `refusals` has it
        integers = False
    tables = [tensor for name, tensor in facts.tensors.items() if table_layouts.is_table(facts, name)]
    fitting = all(table_layouts.block_size(table.shape[1], table_layouts.BITS["int8"]) for table in tables)
    return "int8" if integers and fitting else "dense"


def warn_of_tokens(facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a warning of inputs with a scale for each token, which a graph for TensorRT computes by itself."""
    names = [
        name for name, (_, scheme) in schemes(facts).items()
        if scheme.dynamic and scheme.activations is not None and not scheme.activations.two_level
    ]  # fmt: skip
    if not names:
        return []
    message = (
        f"the inputs of {listed(names)} have a scale for each token, for which TensorRT has no operator: the graph "
        "computes the same by a maximum and a division before products, and a multiplication after them"
    )
    help = "calibrated scales need none of this: quantize with `activations: static` and `data`"
    return [Diagnostic("R457", message, help, severity="warning")]


STANDARD, FUSED = "standard", "fused"  # ONNX's own operators, or onnxruntime's for attention, norms and rotations


def operators(params: Mapping[str, Any]) -> str:
    """Return the operators of a graph: those asked for, or those of its target."""
    if params["operators"] != "auto":
        return str(params["operators"])
    return STANDARD if params["target"] == graph_layouts.TENSORRT else FUSED


def refuse_operators(params: Mapping[str, Any]) -> list[Diagnostic]:
    """Return why a graph for its target cannot have the operators asked for."""
    if params["target"] != graph_layouts.TENSORRT or operators(params) == STANDARD:
        return []
    message = "`operators` is fused; TensorRT does not know onnxruntime's operators"
    return [Diagnostic("R865", message, "leave it out, or use `target: onnxruntime`", path=("operators",))]


def engine(
    facts: CheckpointFacts,
    target: str,
    precision: str,
    embedding: str = "dense",
    operators: str = STANDARD,
    calibration: DataFacts | None = None,
) -> Mapping[str, Any]:
    """Return the part of engine.json that is known before anything runs; `calibration` is that of the tables."""
    packed = schemes(facts)
    stored = Counter(scheme.describe() for _, scheme in packed.values())
    dense = len(facts.sites) - len(packed)
    return {
        "format": "onnx",
        "target": target,
        "precision": precision,
        "embedding": embedding,
        **table_layouts.described(calibration),
        "operators": operators,
        "context": supported.context(facts.config),
        "vocabulary": facts.config.vocabulary_size,
        "max_batch": None,
        "layers": facts.layer_count,
        "stored": dict(sorted({**stored, **({"dense": dense} if dense else {})}.items())),
    }


def holds_nvfp4(engine: Mapping[str, Any]) -> bool:
    """Return whether an engine.json is one of weights in 4-bit floats."""
    return any("float4_e2m1" in text for text in engine.get("stored") or ())


def unrunnable(facts: CheckpointFacts, device: str) -> list[Diagnostic]:
    """Return why a step's engine cannot run on its device."""
    if (facts.engine or {}).get("operators") == FUSED and device == "cuda":
        message = "onnxruntime's fused attention runs on processors alone; this step runs on a GPU"
        return [Diagnostic("R866", message, "build the graph with `operators: standard`")]
    if (facts.engine or {}).get("format") == "onnx" and holds_nvfp4(facts.engine or {}):
        message = "onnxruntime has no 4-bit floats; the graph is one for TensorRT alone"
        help = "measure the checkpoint, of which evaluations round inputs as the graph does, or the engine on a GPU"
        return [Diagnostic("R456", message, help)]
    if (facts.engine or {}).get("format") != "tensorrt" or device == "cuda":
        return []
    message = "a TensorRT engine runs only on an NVIDIA GPU; this step runs on the CPU"
    help = "apply it on a machine with a GPU, or take the engine's graph: `from` a step of `build.onnx`"
    return [Diagnostic("R504", message, help)]

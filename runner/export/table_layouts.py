"""How embeddings are stored in a graph, for the planner as well: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.contracts.context import DataFacts
from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.export import graph_layouts
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization import packed_names

BITS = {"dense": 0, "int8": 8, "int4": 4}  # values of the parameter `embedding`
AUTO = "auto"  # the further one, of which `preflight.embedding` makes one of these
_SCALE_BYTES = 2
_LARGEST = {8: 128, 4: 32}  # columns that share a scale, where they divide the width


def block_size(columns: int, bits: int) -> int | None:
    """Return the columns that share a scale; None where no block divides them."""
    sizes = (size for size in graph_layouts.BLOCKS if size <= _LARGEST[bits])
    return next((size for size in sizes if columns % size == 0), None)


def is_table(facts: CheckpointFacts, name: str) -> bool:
    """Return whether a tensor is the token embedding or the head: outside the layers, with a row for each token."""
    shape = facts.tensors[name].shape
    stands_alone = name.endswith(".weight") and not name.startswith(facts.layers_prefix)
    return stands_alone and len(shape) == 2 and shape[0] == facts.config.vocabulary_size


def has_multiplied(facts: CheckpointFacts) -> bool:
    """Return whether the head, or the embedding that it is tied to, is a table: not where the head is packed."""
    outside = {packed_names.split(name)[0] for name in facts.tensors if not name.startswith(facts.layers_prefix)}
    packed = any(formats.of_module(facts.tensors, module) is not None for module in outside)
    return not packed and any(is_table(facts, name) for name in facts.tensors)


def is_calibrated(facts: CheckpointFacts, params: Mapping[str, Any], embedding: str) -> bool:
    """Return whether a table is rounded by what calibration data say of the head's inputs."""
    return params.get("data") is not None and BITS[embedding] > 0 and has_multiplied(facts)


def described(data: DataFacts | None) -> dict[str, Any]:
    """Return what engine.json says of tables that calibration data rounded: windows (None: all of the data), length."""
    return {} if data is None else {"tables": {"rounding": "gptq", "calibration": [data.samples, data.sequence_length]}}


def text(engine: Mapping[str, Any]) -> str:
    """Return how a card says that tables were rounded, by `described` in an engine.json that has it."""
    windows, length = engine["tables"]["calibration"]
    given = f"{windows} windows of {length} tokens" if windows is not None else f"windows of {length} tokens"
    return f"rounded by GPTQ from the head's inputs in {given}"


def nbytes(rows: int, columns: int, bits: int) -> int:
    """Return the bytes of a rounded table."""
    size = block_size(columns, bits) or columns
    return rows * columns * bits // 8 + rows * (columns // size) * _SCALE_BYTES


def refuse(facts: CheckpointFacts, target: str, embedding: str) -> list[Diagnostic]:
    """Return why the embedding cannot be stored as the recipe asks."""
    bits, path = BITS[embedding], ("embedding",)
    if not bits:
        return []
    if target == graph_layouts.TENSORRT:
        message = f"`embedding` is {embedding}; TensorRT unpacks a table of integers from which rows are gathered"
        return [Diagnostic("R661", message, "leave it out, or use `target: onnxruntime`", path=path)]
    found = []
    for name in sorted(facts.tensors):
        if is_table(facts, name) and block_size(columns := facts.tensors[name].shape[1], bits) is None:
            message = f"`{name}` has {columns} columns; tables of integers have blocks of 16 to {_LARGEST[bits]}"
            found.append(Diagnostic("R661", message, "leave `embedding` out", path=path))
    return found


def check_data(facts: CheckpointFacts, params: Mapping[str, Any], embedding: str) -> list[Diagnostic]:
    """Return a complaint about calibration data by which nothing is rounded."""
    if params.get("data") is None or is_calibrated(facts, params, embedding):
        return []
    dense = f"`embedding: {params['embedding']}` leaves the tables of this model dense"
    why = "the checkpoint has quantized its head already" if BITS[embedding] else dense
    message = f"`data` has no effect: it says how to round the table of integers that multiplies, and {why}"
    return [Diagnostic("R418", message, "leave it out", path=("data",))]


def warn(params: Mapping[str, Any], embedding: str) -> list[Diagnostic]:
    """Return a warning of tables of 4 bits without calibration, which small models do not bear (docs/engines.md)."""
    if BITS[embedding] != 4 or params.get("data") is not None:
        return []
    message = (
        "`embedding` is int4; tables of 4 bits cost some models more than layers do (SmolLM2-135M: 19 % of perplexity)"
    )
    help = "name a calibration text with `data`, by which that model loses 3 %, or use `embedding: int8`"
    return [Diagnostic("R873", message, help, path=("embedding",), severity="warning")]

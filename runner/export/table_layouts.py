"""How embeddings are stored in a graph, for the planner as well: no torch."""

from __future__ import annotations

from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.export import graph_layouts

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


def warn(embedding: str) -> list[Diagnostic]:
    """Return a warning of tables of 4 bits, which small models do not bear (docs/engines.md)."""
    if BITS[embedding] != 4:
        return []
    message = (
        "`embedding` is int4; tables of 4 bits cost some models more than layers do (SmolLM2-135M: 27 % of perplexity)"
    )
    help = "compare it by `evaluate.perplexity` with `embedding: int8`, which costs that model 1 %"
    return [Diagnostic("R873", message, help, path=("embedding",), severity="warning")]

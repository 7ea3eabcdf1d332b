"""Graphs for browsers, by the names and sizes that transformers.js 4 and browsers need. No torch.

transformers.js finds a graph by a suffix for its type, and its data by the graph's name and a number. A browser cannot
hold a file of 2 GB or more in one buffer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.export import graph_layouts, preflight, table_layouts
from runner.export.graph_layouts import WEB

PIECE = 1_900_000_000  # bytes of a file of weights
# transformers.js's name of a type → the suffix of the file.
_SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "q4": "_q4", "q4f16": "_q4f16"}


def dtype(facts: CheckpointFacts, precision: str) -> str:
    """Return transformers.js's name of the type of a checkpoint's graph that computes in `precision`."""
    fields = set()
    for site, scheme in preflight.schemes(facts).values():
        how = graph_layouts.layout_for(WEB, scheme, site.columns)
        fields |= {how.field} if isinstance(how, graph_layouts.GraphLayout) else set()
    if 4 in fields:
        return "q4" if precision == "fp32" else "q4f16"
    return "int8" if fields and precision == "fp32" else precision


def file(name: str) -> str:
    """Return the path of the graph of a type within a folder."""
    return f"onnx/model{_SUFFIXES[name]}.onnx"


def refuse(facts: CheckpointFacts, params: Mapping[str, Any]) -> list[Diagnostic]:
    """Return which tables a browser cannot hold in one piece."""
    if params["target"] != WEB:
        return []
    bits, value = table_layouts.BITS[preflight.embedding(facts, params)], preflight.FLOAT_BYTES[params["precision"]]
    found = []
    for name, tensor in sorted(facts.tensors.items()):
        if not table_layouts.is_table(facts, name):
            continue
        rows, columns = tensor.shape
        size = table_layouts.nbytes(rows, columns, bits) if bits else math.prod(tensor.shape) * value
        if size > PIECE:
            message = f"`{name}` takes {size / 1e9:.1f} GB; browsers hold less than 2 GB in one piece"
            found.append(
                Diagnostic("R867", message, "use `embedding: int4` and `precision: fp16`", path=("embedding",))
            )
    return found

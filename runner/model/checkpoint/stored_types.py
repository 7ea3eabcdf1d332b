"""The floating types that the tensors of a checkpoint are stored in, by their headers.

config.json names one type for the entire model, not always the one that is stored, so it is not used here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from runner.contracts.facts import DTYPE_BYTES, CheckpointFacts, TensorHeader

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # of safetensors → of torch


def main_type(tensors: Iterable[TensorHeader]) -> str:
    """Return torch's name of the type of most floating values; of two equally frequent the wider.

    Without any floating values it is float32.
    """
    counts: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in NAMES:
            counts[tensor.dtype] += math.prod(tensor.shape)
    found = max(counts, key=lambda name: (counts[name], DTYPE_BYTES[name], name), default="F32")
    return NAMES[found]


def stored_type(facts: CheckpointFacts) -> str:
    """The type that most weights of a checkpoint are stored in: "bfloat16"."""
    return main_type(facts.tensors.values())


def is_half(facts: CheckpointFacts) -> bool:
    return stored_type(facts) in ("bfloat16", "float16")

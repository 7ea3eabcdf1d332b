"""The floating types that the tensors of a checkpoint are stored in, by their headers.

config.json names one type for the whole model, and not always the one that is stored: nothing here asks it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from runner.contracts.facts import DTYPE_BYTES, TensorHeader

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # of safetensors → of torch


def main_type(tensors: Iterable[TensorHeader]) -> str:
    """Torch's name of the type that most floating values are stored in; of two alike the wider. float32 without any."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in NAMES:
            counts[tensor.dtype] += math.prod(tensor.shape)
    found = max(counts, key=lambda name: (counts[name], DTYPE_BYTES[name], name), default="F32")
    return NAMES[found]

"""From a module's scheme to the levels on which its weights may lie."""

from __future__ import annotations

import torch

from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.reader import DTYPE_NAMES, DTYPES


def stored_levels(scheme: Scheme, format: str, weight_dtype: torch.dtype) -> Levels:
    """Return the levels of a scheme in the format of that name, for weights stored in `weight_dtype`."""
    return Levels(scheme.weights, DTYPES[formats.find(format).scale_dtype(scheme, DTYPE_NAMES[weight_dtype])])

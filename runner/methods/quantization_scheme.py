"""From a kind's params to the grid of one linear."""

from __future__ import annotations

import torch

from runner.contracts.context import Params
from runner.methods.quantization_grid import Scheme
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.scheme import integers
from runner.model.checkpoint.reader import DTYPE_NAMES, DTYPES


def grid_scheme(params: Params, weight_dtype: torch.dtype) -> Scheme:
    """The scheme that `bits`, `group_size`, `symmetric` and `format` ask for, for weights stored in `weight_dtype`."""
    size = params["group_size"]
    stored = integers(params["bits"], size, params["symmetric"])
    return Scheme(
        bits=params["bits"],
        group_size=size if isinstance(size, int) else None,
        symmetric=params["symmetric"],
        per_tensor=size == "tensor",
        scale_dtype=DTYPES[formats.find(params["format"]).scale_dtype(stored, DTYPE_NAMES[weight_dtype])],
    )

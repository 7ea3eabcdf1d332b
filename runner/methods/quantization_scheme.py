"""From a kind's params to the grid of one linear."""

from __future__ import annotations

import torch

from runner.contracts.context import Params
from runner.methods.quantization_grid import Scheme
from runner.model.checkpoint.formats import scale_dtype
from runner.model.checkpoint.reader import DTYPE_NAMES, DTYPES


def grid_scheme(params: Params, weight_dtype: torch.dtype) -> Scheme:
    """The scheme that `bits`, `group_size`, `symmetric` and `format` ask for, for weights stored in `weight_dtype`."""
    size = params["group_size"]
    return Scheme(
        bits=params["bits"],
        group_size=size if isinstance(size, int) else None,
        symmetric=params["symmetric"],
        per_tensor=size == "tensor",
        scale_dtype=DTYPES[scale_dtype(params["format"], DTYPE_NAMES[weight_dtype])],
    )

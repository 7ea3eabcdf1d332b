"""From a module's scheme to the levels on which its weights may lie, and to the scale of its inputs."""

from __future__ import annotations

from dataclasses import replace

import torch

from runner.methods.quantization_grid import global_scale
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization import scale_types
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.reader import DTYPE_NAMES, DTYPES


def stored_levels(scheme: Scheme, format: str, weight_dtype: torch.dtype) -> Levels:
    """Return the levels of a scheme in the format of that name, for weights stored in `weight_dtype`."""
    numbers = scheme.weights
    if numbers.scale in scale_types.BY_NAME:
        return Levels(numbers, scale_types.BY_NAME[numbers.scale])
    return Levels(numbers, DTYPES[formats.find(format).scale_dtype(scheme, DTYPE_NAMES[weight_dtype])])


def with_input_scale(
    weight: Quantized, scheme: Scheme, largest: torch.Tensor | None, weight_dtype: torch.dtype
) -> Quantized:
    """Return `weight` with the calibrated scale of its inputs, where its scheme has one.

    largest  the largest |input|, a float32 scalar
    """
    numbers = scheme.activations
    if not scheme.calibrated or numbers is None:
        return weight
    if largest is None:
        raise ValueError("the scale of inputs needs the largest one")
    if numbers.two_level:
        return replace(weight, input_scale=global_scale(largest, Levels(numbers, scale_types.E4M3)))
    dtype = weight_dtype if weight_dtype in (torch.bfloat16, torch.float16) else torch.float32
    levels = Levels(numbers, dtype)
    scale = levels.storable(torch.where(largest > 0, levels.full_scale(largest), 1.0))
    return replace(weight, input_scale=scale.to(dtype).reshape(1))

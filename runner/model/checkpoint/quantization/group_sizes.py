"""Whether groups of columns fit a weight. Imports no torch."""

from __future__ import annotations

from runner.model.checkpoint.quantization import compressed_tensors_config
from runner.model.checkpoint.quantization.format import Matrix, Refusal
from runner.model.checkpoint.quantization.scheme import Scheme

USUAL = (16, 32, 64, 128, 256, 512, 1024)


def refuse_uneven(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    """Readers do not load a weight whose last group is short; the group sizes that would do."""
    group, columns = scheme.group_size, matrix.columns
    if not isinstance(group, int) or columns % group == 0:
        return None
    divisors = [size for size in USUAL if columns % size == 0]
    other = f"group_size {' or '.join(map(str, divisors[-3:]))}" if divisors else 'group_size: "channel"'
    return Refusal(f"has {columns} columns, which group_size {group} does not divide", f"use {other}")


def refuse_small_float(scheme: Scheme, matrix: Matrix, format: str, weights_alone: str) -> Refusal | None:
    """What stands against a weight in one of compressed-tensors' formats of small floats, whose groups are fixed.

    compressed-tensors 0.20 unpacks these to bf16, whatever the type of the model is. `weights_alone` is the scheme with
    inputs as they are, which can be unpacked on loading and then converted.
    """
    if conv1d := compressed_tensors_config.refuse_conv1d(matrix):
        return conv1d
    size = scheme.columns(matrix.columns)
    if matrix.columns % size:
        problem = f"has {matrix.columns} columns, which groups of {size} do not divide"
        return Refusal(problem, "add it to `ignore` or use a scheme without groups, such as `fp8`")
    if scheme.activations is not None and matrix.dtype in ("F32", "F16"):
        problem = (
            f"is stored as {matrix.dtype}; transformers unpacks `{format}` to bfloat16, and cannot multiply that with "
            f"inputs of another type"
        )
        return Refusal(problem, f"use `scheme: {weights_alone}`, or store the model in bfloat16 before")
    return None

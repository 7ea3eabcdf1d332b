"""One block of GPTQ columns as one kernel on an NVIDIA GPU (Triton, which comes with torch's CUDA builds).

It follows the same rule as `gptq._round_block`, which launches half a dozen kernels for every column: on a fast GPU
those launches take nearly all of the solving time. Each program holds the block's columns of a few rows in registers
and processes them from the last to the first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS = 32  # rows of the weight that one program rounds


def round_block(
    values: torch.Tensor,
    target: torch.Tensor,
    errors: torch.Tensor,
    feedback: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    top: int,
    groups: torch.Tensor,
    keep: bool,
) -> torch.Tensor:
    """Round the columns of one block; return q − z [columns, rows] float32.

    values    [columns, rows]: (2) of runner.methods.gptq over all later blocks; completed in place
    target    [columns, rows]: w;  errors [columns, rows]: filled with w − s (q − z); rows of all four contiguous
    feedback  [columns, columns]: the diagonal block of the factor's, a view of any strides
    scale, zero  [G, rows] float32, contiguous;  groups  int64 [columns]: the grid of each column;  top  2^bits − 1
    keep      what is zero in `target` stays zero
    """
    columns, rows = values.shape
    steps = torch.empty_like(values)
    _round[(triton.cdiv(rows, ROWS),)](
        values, target, errors, steps, feedback, scale, zero, groups,
        columns, rows, top, feedback.stride(0), feedback.stride(1),
        COLUMNS=triton.next_power_of_2(columns), ROWS=ROWS, KEEP=keep, num_warps=4,
    )  # fmt: skip
    return steps


@triton.jit  # type: ignore[untyped-decorator]
def _round(  # type: ignore[no-untyped-def]  # Triton's types are not Python's
    values, target, errors, steps, feedback, scale, zero, groups,
    columns, rows, top, down, across,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = own < rows
    every = tl.arange(0, COLUMNS)
    places = every[:, None] * rows + own[None, :]
    block = tl.load(values + places, mask=(every[:, None] < columns) & real[None, :], other=0.0)
    for back in range(columns):
        column = columns - 1 - back
        value = tl.sum(tl.where(every[:, None] == column, block, 0.0), axis=0)
        group = tl.load(groups + column)
        s = tl.load(scale + group * rows + own, mask=real, other=1.0)
        z = tl.load(zero + group * rows + own, mask=real, other=0.0)
        w = tl.load(target + column * rows + own, mask=real, other=0.0)
        step = tl.floor(value / s + 0.5)
        step = tl.minimum(tl.maximum(step, -z), top - z)
        if KEEP:
            step = tl.where(w == 0.0, 0.0, step)
        error = w - s * step
        tl.store(steps + column * rows + own, step, mask=real)
        tl.store(errors + column * rows + own, error, mask=real)
        # Row k of the factor's holds what E_j adds to column k, for j > k: column j of it is the full effect of E_j.
        effect = tl.load(feedback + every * down + column * across, mask=every < column, other=0.0)
        block += effect[:, None] * error[None, :]
    tl.store(values + places, block, mask=(every[:, None] < columns) & real[None, :])

"""Quantizes merged weights again, by the kind and the parameters that quantized them before. No torch at the top."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.contracts.context import Context, Result
from runner.errors import StepFailed

if TYPE_CHECKING:
    import torch


def recorded(folder: Path) -> Mapping[str, Any]:
    """Return compression.json of a quantized checkpoint.

    Raises StepFailed where it has none, because another tool quantized it, or where a kind did that cannot do it again.
    """
    from runner.model.checkpoint.companions import COMPRESSION
    from runner.steps import kinds

    path = folder / COMPRESSION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and {"kind", "params", "calibration"} <= set(found):
        if getattr(kinds.find(found["kind"]), "method", None) is None:
            raise StepFailed(
                f"`{found['kind']}`, which quantized the checkpoint, is no layer-wise kind", "use `merge: keep`"
            )
        return found
    raise StepFailed(
        f"`merge: requantize` needs to know how the checkpoint was quantized, and {path} does not record it",
        "use `merge: keep`, or quantize the model in this recipe",
    )


def run(ctx: Context, dense: Path) -> Result:
    """Quantize the dense checkpoint as the step's own was; the result is in `ctx.out_dir`. Repeatable.

    The calibration text is that of the training, with as many of its first windows as the first quantization used.
    """
    from runner.model.layerwise.stream_run import StreamRun
    from runner.recipe.schema import load as schemas
    from runner.steps import kinds
    from runner.steps import layer_stream as stream

    made = recorded(ctx.inputs["checkpoint"].path)
    method = kinds.find(made["kind"]).method  # type: ignore[attr-defined]  # `recorded` has looked for it
    ids = calibration_windows(ctx.data("data"), *made["calibration"]) if made["calibration"] else None
    params = schemas.defaults(made["kind"], made["params"])  # of what has become a parameter since then
    how = stream.Compression(made["kind"], method, params, ids, made["calibration"])
    folder = ctx.scratch_dir / "requantize"
    folder.mkdir(exist_ok=True)
    run = StreamRun(folder, folder / "progress.json", stream.hooks(ctx))
    return stream.compress(replace(ctx.inputs["checkpoint"], path=dense), how, run, ctx)


def calibration_windows(ids: torch.Tensor, windows: int | None, length: int) -> torch.Tensor:
    """Return the first windows of `ids` with about as many tokens as `windows` of `length`; all where that is None."""
    if windows is None:
        return ids
    return ids[: max(1, -(-windows * length // ids.shape[1]))]

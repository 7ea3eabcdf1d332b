"""Quantizes merged weights again, by the kind and the parameters that quantized them before. No torch at the top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.contracts.context import Context, Result
from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic, StepFailed
from runner.model.checkpoint.companions import COMPRESSION, compression
from runner.steps import kinds

if TYPE_CHECKING:
    import torch


def refuse(facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a complaint about a quantized checkpoint that cannot be quantized again as it was."""
    why = _refusal(facts.compressed_by)
    return [] if why is None else [Diagnostic("R473", *why, path=("merge",))]


def _refusal(kind: str | None) -> tuple[str, str] | None:
    """Return why weights that `kind` quantized cannot be quantized again, with the remedy; None where they can."""
    if kind is None:
        message = f"`merge: requantize` needs to know how the checkpoint was quantized, and it has no `{COMPRESSION}`"
        return f"{message} that says so", "use `merge: keep`, or quantize the model in this recipe"
    if kind not in kinds.names():
        return f"`{kind}`, which quantized the checkpoint, is not installed", "install it, or use `merge: keep`"
    if getattr(kinds.find(kind), "method", None) is None:
        message = f"`{kind}`, which quantized the checkpoint, cannot quantize it again with an adapter merged into it"
        return message, "use `merge: keep`, or quantize with one of the kinds `quantize.*`"
    return None


def recorded(folder: Path) -> Mapping[str, Any]:
    """Return compression.json of a quantized checkpoint. Raises StepFailed where `refuse` complains."""
    found = compression(folder)
    why = _refusal(None if found is None else str(found["kind"]))
    if why is not None:
        raise StepFailed(*why)
    return found or {}


def run(ctx: Context, dense: Path) -> Result:
    """Quantize the dense checkpoint as the step's own was; the result is in `ctx.out_dir`. Repeatable.

    The calibration text is that of the training, with as many of its first windows as the first quantization used.
    """
    from runner.model.layerwise.stream_run import StreamRun
    from runner.recipe.schema import load as schemas
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

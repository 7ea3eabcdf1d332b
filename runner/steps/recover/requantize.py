"""Quantizing merged weights again, by the kind and the parameters that quantized them before. No torch at the top."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.contracts.context import Artifact, Context, DataFacts, Params, Result
from runner.errors import StepFailed

if TYPE_CHECKING:
    import torch


def recorded(folder: Path) -> Mapping[str, Any]:
    """compression.json of a quantized checkpoint. StepFailed where it has none: another tool quantized it."""
    from runner.model.checkpoint.companions import COMPRESSION

    path = folder / COMPRESSION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and {"kind", "params", "calibration"} <= set(found):
        return found
    raise StepFailed(
        f"`merge: requantize` needs to know how the checkpoint was quantized, and {path} does not say it",
        "use `merge: keep`, or quantize the model in this recipe",
    )


def run(ctx: Context, dense: Path) -> Result:
    """Quantize the dense checkpoint as the step's own was; the result is in `ctx.out_dir`. Repeatable."""
    from runner.model.layerwise.engine import transform
    from runner.steps import kinds

    made = recorded(ctx.inputs["checkpoint"].path)
    method = getattr(kinds.find(made["kind"]), "method", None)
    if method is None:
        raise StepFailed(
            f"`{made['kind']}`, which quantized the checkpoint, is no layer-wise kind", "use `merge: keep`"
        )
    inner = Again(ctx, dense, made)
    result = transform(inner, method)
    for path in sorted(path for path in inner.out_dir.rglob("*") if path.is_file()):
        target = ctx.out_dir / path.relative_to(inner.out_dir)
        target.parent.mkdir(exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:  # a file system without links
            shutil.copyfile(path, target)
    return result


class Again:
    """The context of the step that quantizes again: its input is the merged checkpoint, its text that of the training,

    as many of its first windows as the quantization saw before.
    """

    def __init__(self, ctx: Context, dense: Path, made: Mapping[str, Any]) -> None:
        self._ctx = ctx
        self._calibration = made["calibration"]
        known = {"data": ctx.params["data"]} if self._calibration else {}
        self.params: Params = {**known, **made["params"]}
        self.inputs = {"checkpoint": Artifact(dense, "checkpoint", "")}
        folder = ctx.scratch_dir / "requantize"
        self.out_dir, self.scratch_dir = folder / "out", folder / "scratch"
        for path in (self.out_dir, self.scratch_dir):
            path.mkdir(parents=True, exist_ok=True)
        self.cache_dir = ctx.cache_dir
        self.seed, self.device, self.threads, self.processes = ctx.seed, ctx.device, ctx.threads, 1
        self.recipe_text = ctx.recipe_text

    def data(self, parameter: str) -> torch.Tensor:
        ids = self._ctx.data(parameter)
        windows, length = self._calibration
        if windows is None:
            return ids
        wanted = windows * length
        return ids[: max(1, -(-wanted // ids.shape[1]))]

    def data_facts(self, parameter: str) -> DataFacts:
        """As it was before, so that what is written beside the weights stays as it was."""
        facts = self._ctx.data_facts(parameter)
        windows, length = self._calibration
        return DataFacts(facts.name, windows, length, facts.bytes, facts.digest)

    def files(self, parameter: str) -> Mapping[str, Path]:
        return self._ctx.files(parameter)

    def emit(self, event: str, **fields: Any) -> None:
        self._ctx.emit(event, **fields)

    def safe_point(self) -> None:
        self._ctx.safe_point()

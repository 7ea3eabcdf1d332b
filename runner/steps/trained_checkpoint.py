"""The target of a step that trains a checkpoint. Imported inside functions only: it loads torch."""

from __future__ import annotations

from runner.contracts.context import Context
from runner.model.checkpoint.writer import parse_size
from runner.steps import model_card
from runner.training.checkpoint_writer import Target


def target(ctx: Context, base: str = "checkpoint") -> Target:
    """Return the target in the step's folder; `base` is the input that was trained."""
    size = parse_size(ctx.params["max_shard_size"])
    return Target(ctx.out_dir, ctx.scratch_dir / "parts", size, model_card.render(ctx, base=base))

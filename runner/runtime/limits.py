"""The checks of inputs that all runtimes share. Imports only numpy."""

from __future__ import annotations

from runner.errors import StepFailed
from runner.runtime.protocol import Ids


def check(ids: Ids, cached: int, context: int, max_batch: int | None, vocabulary: int) -> None:
    """Raise StepFailed, with the numbers, unless `ids` [b, n] fit context (after `cached`), batch and vocabulary."""
    if ids.ndim != 2 or ids.size == 0:
        raise StepFailed(f"token ids must be [batch, tokens], both at least 1; they are {list(ids.shape)}")
    batch, length = ids.shape
    if max_batch is not None and batch > max_batch:
        raise StepFailed(
            f"{batch} sequences at once; it runs at most {max_batch}", "give fewer at once, or build it for more"
        )
    if cached + length > context:
        raise StepFailed(
            f"{cached + length:,} tokens; prompt and continuation may have {context:,} together",
            "shorten the prompt or the continuation, or build it for longer sequences",
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise StepFailed(
            f"there is no token {low if low < 0 else high}: the vocabulary has {vocabulary:,}",
            "use the tokenizer that belongs to the model",
        )

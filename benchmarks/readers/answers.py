"""What a program without a tokenizer or a loop of its own answers. Stands alone: it needs numpy and tokenizers.

A run takes new tokens, the number of those before them and what the last run returned beside logits, None at first; it
returns the logits [n, V] of the n new tokens and what the next run needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from loss import mean_loss  # type: ignore[import-not-found]  # it lies beside this script
from tokenizers import Tokenizer

Run = Callable[[list[int], int, Any], tuple[Any, Any]]


def answer(run: Run, folder: str, prompts: str, count: int, out: str) -> None:
    """Continue the prompts of a file greedily and measure the loss of its windows; write both to `out`."""
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    ends = json.loads((Path(folder) / "config.json").read_text())["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    asked = json.loads(Path(prompts).read_text())
    found = [(tokenizer.encode(text).ids, _continue(run, ids, count, ends)) for text, ids in asked["prompts"]]
    loss = mean_loss(asked["windows"], lambda ids: run(ids, 0, None)[0])
    Path(out).write_text(json.dumps({"found": found, "loss": loss}))


def _continue(run: Run, ids: list[int], count: int, ends: Collection[int]) -> list[int]:
    """Return the greedy tokens after `ids`, up to the first that ends a text."""
    made: list[int] = []
    new, length, past = ids, 0, None
    while len(made) < count and not (made and made[-1] in ends):
        logits, past = run(new, length, past)
        length += len(new)
        new = [int(logits[-1].argmax())]
        made += new
    return made

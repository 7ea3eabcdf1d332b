"""Continue prompts by ExecuTorch's runtime: `FOLDER PROMPTS COUNT OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401  registers the operators of embeddings of integers
import torch
from executorch.runtime import Runtime
from loss import mean_loss  # type: ignore[import-not-found]  # it lies beside this script
from tokenizers import Tokenizer


def main(folder: str, prompts: str, count: int, out: str) -> None:
    program = Runtime.get().load_program(Path(folder) / "model.pte")
    forward = program.load_method("forward")
    ends = program.load_method("get_eos_ids").execute([])
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    asked = json.loads(Path(prompts).read_text())
    found = [(tokenizer.encode(text).ids, _continue(forward, ids, count, ends)) for text, ids in asked["prompts"]]
    loss = mean_loss(asked["windows"], lambda ids: _logits(forward, ids, 0).numpy())
    Path(out).write_text(json.dumps({"found": found, "loss": loss}))


def _continue(forward: Any, ids: list[int], count: int, ends: list[int]) -> list[int]:
    """Return the greedy tokens after `ids`, up to the first that ends a text."""
    made: list[int] = []
    new, length = ids, 0
    while len(made) < count and not (made and made[-1] in ends):
        logits = _logits(forward, new, length)
        length += len(new)
        new = [int(logits[-1].argmax())]
        made += new
    return made


def _logits(forward: Any, new: list[int], position: int) -> torch.Tensor:
    """Return the logits [n, V] of `new`, the first of which is at `position`."""
    logits: torch.Tensor = forward.execute([torch.tensor([new]), torch.tensor([position])])[0][0]
    return logits


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

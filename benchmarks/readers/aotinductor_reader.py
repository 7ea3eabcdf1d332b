"""Continue prompts by a package of PyTorch's compiler, with torch alone: `FOLDER PROMPTS COUNT OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from loss import mean_loss  # type: ignore[import-not-found]  # it lies beside this script
from tokenizers import Tokenizer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(folder: str, prompts: str, count: int, out: str) -> None:
    engine = json.loads((Path(folder) / "engine.json").read_text())
    package = torch._inductor.aoti_load_package(str(Path(folder) / engine["file"]))
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    ends = json.loads((Path(folder) / "config.json").read_text())["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    asked = json.loads(Path(prompts).read_text())
    found = [
        (tokenizer.encode(text).ids, _continue(package, engine, ids, count, ends)) for text, ids in asked["prompts"]
    ]
    loss = mean_loss(asked["windows"], lambda ids: _run(package, engine, ids, 0, [])[0][0].float().numpy())
    Path(out).write_text(json.dumps({"found": found, "loss": loss}))


def _continue(package: Any, engine: Any, ids: list[int], count: int, ends: list[int]) -> list[int]:
    """Return the greedy tokens after `ids`, up to the first that ends a text."""
    made: list[int] = []
    past: list[torch.Tensor] = []
    new, length = ids, 0
    while len(made) < count and not (made and made[-1] in ends):
        logits, past = _run(package, engine, new, length, past)
        length += len(new)
        new = [int(logits[0, -1].argmax())]
        made += new
    return made


def _run(package: Any, engine: Any, new: list[int], before: int, past: list[torch.Tensor]) -> tuple[Any, Any]:
    """Return the logits of `new` and the cache after them, where `before` tokens are in `past`."""
    length = before + len(new)
    empty = torch.zeros((1, engine["kv_heads"], 0, engine["head_dim"]), dtype=PRECISIONS[engine["precision"]])
    past = past or [empty.clone() for _ in range(2 * engine["layers"])]
    with torch.inference_mode():
        logits, *past = package(
            torch.tensor([new]), torch.ones(1, length, dtype=torch.int64), torch.arange(before, length)[None], past
        )
    return logits, past


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

"""Continue prompts by a package of PyTorch's compiler, with torch alone: `FOLDER PROMPTS COUNT OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from answers import answer  # type: ignore[import-not-found]  # it lies beside this script

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(folder: str, prompts: str, count: int, out: str) -> None:
    engine = json.loads((Path(folder) / "engine.json").read_text())
    package = torch._inductor.aoti_load_package(str(Path(folder) / engine["file"]))
    answer(lambda *given: _run(package, engine, *given), folder, prompts, count, out)


def _run(
    package: Any, engine: Any, new: list[int], before: int, past: list[torch.Tensor] | None
) -> tuple[Any, list[torch.Tensor]]:
    """Return the logits of `new` and the cache after them, where `before` tokens are in `past`."""
    length = before + len(new)
    empty = torch.zeros((1, engine["kv_heads"], 0, engine["head_dim"]), dtype=PRECISIONS[engine["precision"]])
    past = past or [empty.clone() for _ in range(2 * engine["layers"])]
    with torch.inference_mode():
        logits, *past = package(
            torch.tensor([new]), torch.ones(1, length, dtype=torch.int64), torch.arange(before, length)[None], past
        )
    return logits[0].float().numpy(), past


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

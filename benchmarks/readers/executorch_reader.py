"""Continue prompts by ExecuTorch's runtime: `FOLDER PROMPTS COUNT OUT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401  registers the operators of embeddings of integers
import torch
from answers import answer  # type: ignore[import-not-found]  # it lies beside this script
from executorch.runtime import Runtime


def main(folder: str, prompts: str, count: int, out: str) -> None:
    forward = Runtime.get().load_program(Path(folder) / "model.pte").load_method("forward")

    def run(new: list[int], position: int, past: None) -> tuple[Any, None]:  # the program holds its cache
        return forward.execute([torch.tensor([new]), torch.tensor([position])])[0][0].numpy(), None

    answer(run, folder, prompts, count, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

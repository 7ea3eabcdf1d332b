"""Train the demo model in a process of its own, and say how much memory that took."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.training import session
from runner.training.task import Settings, Task
from runner.training.trainer import Hooks

LENGTH = 512


def task(folder: Path, batch: int, trained: str) -> Task:
    """Three steps of all weights ("all"), or of those whose names end so, over a frozen rest."""
    demo = Path(session.__file__).parents[1] / "demo" / "models" / "tiny-llama"
    arguments: dict[str, Any] = {"folder": str(demo), "config": {"dtype": "float32"}}
    if trained != "all":
        arguments["only"] = trained
    settings = Settings(3, batch, 1, 1e-3, "constant", 0, 0.0, 1.0, "fp32", False, 50, 0, None, 50, False)
    build = "tests.training.plain:build"
    return Task(build, arguments, settings, folder / "ids.npy", None, folder / "training", 0, "cpu", 1)


def main(folder: Path, batch: int, trained: str) -> None:
    torch.set_num_threads(1)
    made = task(folder, batch, trained)
    np.save(made.ids, np.random.default_rng(0).integers(3, 4096, (2 * batch, LENGTH)))
    peaks: list[int] = []

    def emit(fields: Mapping[str, Any]) -> None:
        peaks.append(fields["memory"])

    session.train(made, Hooks(emit, lambda: False, lambda step: None))
    sys.stdout.write(f"{max(peaks)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

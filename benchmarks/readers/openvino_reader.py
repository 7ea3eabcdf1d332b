"""Continue prompts by OpenVINO: `FOLDER PROMPTS COUNT OUT`. It reads the graph itself, without onnxruntime."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]  # it is in an environment of its own
from answers import answer  # type: ignore[import-not-found]  # it lies beside this script


def main(folder: str, prompts: str, count: int, out: str) -> None:
    engine = json.loads((Path(folder) / "engine.json").read_text())
    compiled = openvino.Core().compile_model(str(Path(folder) / engine["file"]), "CPU")
    request = compiled.create_infer_request()
    answer(lambda *given: _run(request, engine, *given), folder, prompts, count, out)


def _run(request: Any, engine: Any, new: list[int], before: int, past: list[Any] | None) -> tuple[Any, list[Any]]:
    """Return the logits of `new` and the cache after them, where `before` tokens are in `past`."""
    named, length = engine["inputs"][3:], before + len(new)
    past = past or [np.zeros((1, engine["kv_heads"], 0, engine["head_dim"]), given["dtype"]) for given in named]
    results = request.infer({
        "input_ids": np.array([new], np.int64), "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(before, length, dtype=np.int64)[None],
        **dict(zip((given["name"] for given in named), past, strict=True)),
    })  # fmt: skip
    logits, *past = (results[place].copy() for place in range(len(engine["outputs"])))
    return logits[0], past


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

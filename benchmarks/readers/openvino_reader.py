"""Continue prompts by OpenVINO: `FOLDER PROMPTS COUNT OUT`. It reads the graph itself, without onnxruntime."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]  # it is in an environment of its own
from loss import mean_loss  # type: ignore[import-not-found]  # it lies beside this script
from tokenizers import Tokenizer


def main(folder: str, prompts: str, count: int, out: str) -> None:
    engine = json.loads((Path(folder) / "engine.json").read_text())
    compiled = openvino.Core().compile_model(str(Path(folder) / engine["file"]), "CPU")
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    ends = json.loads((Path(folder) / "config.json").read_text())["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    asked = json.loads(Path(prompts).read_text())
    found = [
        (tokenizer.encode(text).ids, _continue(compiled, engine, ids, count, ends)) for text, ids in asked["prompts"]
    ]
    loss = mean_loss(asked["windows"], lambda ids: _run(compiled.create_infer_request(), engine, ids, 0, [])[0][0])
    Path(out).write_text(json.dumps({"found": found, "loss": loss}))


def _continue(compiled: Any, engine: Any, ids: list[int], count: int, ends: list[int]) -> list[int]:
    """Return the greedy tokens after `ids`, up to the first that ends a text."""
    made: list[int] = []
    request = compiled.create_infer_request()
    past: list[Any] = []
    new, length = ids, 0
    while len(made) < count and not (made and made[-1] in ends):
        logits, *past = _run(request, engine, new, length, past)
        length += len(new)
        new = [int(logits[0, -1].argmax())]
        made += new
    return made


def _run(request: Any, engine: Any, new: list[int], before: int, past: list[Any]) -> list[Any]:
    """Return the logits of `new` and the cache after them, where `before` tokens are in `past`."""
    named, length = engine["inputs"][3:], before + len(new)
    past = past or [np.zeros((1, engine["kv_heads"], 0, engine["head_dim"]), given["dtype"]) for given in named]
    results = request.infer({
        "input_ids": np.array([new], np.int64), "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(before, length, dtype=np.int64)[None],
        **dict(zip((given["name"] for given in named), past, strict=True)),
    })  # fmt: skip
    return [results[place].copy() for place in range(len(engine["outputs"]))]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

"""Continue prompts by OpenVINO: `FOLDER PROMPTS COUNT OUT`. It reads the graph itself, without onnxruntime."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]  # it is in an environment of its own
from tokenizers import Tokenizer


def main(folder: str, prompts: str, count: int, out: str) -> None:
    engine = json.loads((Path(folder) / "engine.json").read_text())
    compiled = openvino.Core().compile_model(str(Path(folder) / engine["file"]), "CPU")
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    ends = json.loads((Path(folder) / "config.json").read_text())["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    found = [
        (tokenizer.encode(text).ids, _continue(compiled, engine, ids, count, ends))
        for text, ids in json.loads(Path(prompts).read_text())
    ]
    Path(out).write_text(json.dumps(found))


def _continue(compiled: Any, engine: Any, ids: list[int], count: int, ends: list[int]) -> list[int]:
    """Return the greedy tokens after `ids`, up to the first that ends a text."""
    made: list[int] = []
    request = compiled.create_infer_request()
    past = [np.zeros((1, engine["kv_heads"], 0, engine["head_dim"]), i["dtype"]) for i in engine["inputs"][3:]]
    names = [given["name"] for given in engine["inputs"][3:]]
    new, length = ids, 0
    while len(made) < count and not (made and made[-1] in ends):
        length += len(new)
        given = {
            "input_ids": np.array([new], np.int64), "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length - len(new), length, dtype=np.int64)[None],
            **dict(zip(names, past, strict=True)),
        }  # fmt: skip
        results = request.infer(given)
        outputs = [results[place].copy() for place in range(len(engine["outputs"]))]
        past = outputs[1:]
        new = [int(outputs[0][0, -1].argmax())]
        made += new
    return made


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

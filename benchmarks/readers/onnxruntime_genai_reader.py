"""Continue prompts by onnxruntime-genai: `FOLDER PROMPTS COUNT OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime_genai as og  # type: ignore[import-not-found]  # it is in an environment of its own
from loss import mean_loss  # type: ignore[import-not-found]  # it lies beside this script


def main(folder: str, prompts: str, count: int, out: str) -> None:
    model = og.Model(folder)
    tokenizer = og.Tokenizer(model)
    given = json.loads(Path(prompts).read_text())
    found = []
    for text, ids in given["prompts"]:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + count, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        tokens = [int(token) for token in generator.get_sequence(0)][len(ids) :]
        found.append(([int(token) for token in tokenizer.encode(text)], tokens))
    loss = mean_loss(given["windows"], lambda ids: _logits(model, ids))
    Path(out).write_text(json.dumps({"found": found, "loss": loss}))


def _logits(model: Any, ids: list[int]) -> Any:
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 1, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    return generator.get_output("logits")[0]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

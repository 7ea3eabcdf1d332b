"""Time onnxruntime-genai: `FOLDER PROMPTS COUNT THREADS OUT`. The first prompt warms up.

Writes seconds of each prompt, with its first token, and of the COUNT tokens after it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import onnxruntime_genai as og  # type: ignore[import-not-found]  # it is in an environment of its own


def main(folder: str, prompts: str, count: int, threads: int, out: str) -> None:
    config = og.Config(folder)
    session = {"session_options": {"intra_op_num_threads": threads, "inter_op_num_threads": 1}}
    config.overlay(json.dumps({"model": {"decoder": session}}))
    model = og.Model(config)
    found: dict[str, list[float]] = {"prefill": [], "decode": []}
    for ids in json.loads(Path(prompts).read_text()):
        parameters = og.GeneratorParams(model)
        length = len(ids) + count + 1
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(model, parameters)
        start = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        found["prefill"].append(middle - start)
        found["decode"].append(time.perf_counter() - middle)
    Path(out).write_text(json.dumps({name: seconds[1:] for name, seconds in found.items()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])

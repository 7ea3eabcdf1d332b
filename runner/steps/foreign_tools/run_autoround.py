"""SignRound by AutoRound; run by the interpreter of its environment: `python run_autoround.py REQUEST.json`.

Stands alone: it imports nothing of runner. See runner.steps.foreign_tool for what it reads and writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def say(phase: str, done: int) -> None:
    event = {"phase": phase, "done": done, "total": 3, "unit": "phases"}
    print(f"@runner {json.dumps(event)}", flush=True)  # noqa: T201


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    params = asked["params"]

    import numpy as np
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(asked["threads"])
    say("loading", 0)
    ids = torch.from_numpy(np.load(asked["ids"]))
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    windows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    batches = torch.utils.data.DataLoader(windows, batch_size=params["batch_size"])
    group = params["group_size"]
    rounding = AutoRound(
        model, tokenizer, bits=params["bits"], group_size=-1 if group == "channel" else group,
        sym=params["symmetric"], dataset=batches, iters=params["iters"], seqlen=ids.shape[1], nsamples=len(ids),
        batch_size=params["batch_size"], seed=asked["seed"] % 2**32, device_map=asked["device"],
        enable_torch_compile=False, scale_dtype=str(model.dtype).removeprefix("torch."),
    )  # fmt: skip
    say("quantizing", 1)
    rounding.quantize_and_save(asked["out"], format="llm_compressor")
    say("saving", 2)
    # Some versions save in a folder of the model's name.
    inner = next(Path(asked["out"]).glob("*/config.json"), None)
    if inner is not None:
        for path in inner.parent.iterdir():
            path.rename(Path(asked["out"]) / path.name)


if __name__ == "__main__":
    main()

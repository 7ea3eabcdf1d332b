"""GPTQ by llm-compressor; run by the interpreter of its environment: `python run_llmcompressor.py REQUEST.json`.

Stands alone: it imports nothing of runner. See runner.steps.foreign_tool for what it reads and writes.
"""

from __future__ import annotations

import json
import sys


def say(phase: str, done: int) -> None:
    event = {"phase": phase, "done": done, "total": 3, "unit": "phases"}
    print(f"@runner {json.dumps(event)}", flush=True)  # noqa: T201


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    params = asked["params"]

    import numpy as np
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    torch.set_num_threads(asked["threads"])
    set_seed(asked["seed"] % 2**32)
    say("loading", 0)
    ids = np.load(asked["ids"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    group = params["group_size"]
    weights = {"num_bits": params["bits"], "type": "int", "symmetric": params["symmetric"]}
    weights |= {"strategy": "channel"} if group == "channel" else {"strategy": "group", "group_size": group}
    modifier = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"],
        dampening_frac=params["dampening_fraction"], actorder=None,
    )  # fmt: skip
    say("quantizing", 1)
    oneshot(
        model=model, tokenizer=tokenizer, recipe=modifier, num_calibration_samples=len(ids),
        dataset=Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}),
        max_seq_length=ids.shape[1], shuffle_calibration_samples=False, batch_size=1, pipeline="sequential",
    )  # fmt: skip
    say("saving", 2)
    model.save_pretrained(asked["out"], save_compressed=True)


if __name__ == "__main__":
    main()

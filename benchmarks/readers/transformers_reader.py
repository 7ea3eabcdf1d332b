"""Continue prompts by transformers, in float32: `FOLDER PROMPTS COUNT OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from loss import mean_loss  # type: ignore[import-not-found]  # it lies beside this script
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, prompts: str, count: int, out: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = json.loads(Path(prompts).read_text())
    found = []
    with torch.no_grad():
        for text, ids in asked["prompts"]:
            given = torch.tensor([ids])
            made = model.generate(
                input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False
            )
            found.append((tokenizer(text)["input_ids"], made[0].tolist()[len(ids) :]))
        loss = mean_loss(asked["windows"], lambda ids: model(torch.tensor([ids])).logits[0].numpy())
    Path(out).write_text(json.dumps({"found": found, "loss": loss}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])

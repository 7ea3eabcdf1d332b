"""One judge for all: the perplexity of any checkpoint, loaded in plain transformers. Stands alone.

    PYTHON benchmarks/perplexity.py MODEL EVALUATION.npy

PYTHON is one that has what the checkpoint's format needs: compressed-tensors, or gptqmodel and optimum. Each row of
EVALUATION.npy is a window; the score is exp of the mean over windows of the mean cross-entropy of all tokens but the
first, with logits in float32.
"""

from __future__ import annotations

import argparse
import json
import math


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokens", help="ids [windows, length], a .npy file")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()

    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.from_numpy(np.load(args.tokens))
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()
    losses = []
    with torch.no_grad():
        for batch in ids.split(args.batch_size):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
            losses += loss.mean(dim=1).tolist()
    windows, length = ids.shape
    score = math.exp(sum(losses) / len(losses))
    print(json.dumps({"perplexity": round(score, 4), "windows": windows, "sequence_length": length}))


if __name__ == "__main__":
    main()

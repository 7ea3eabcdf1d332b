"""SignRound by AutoRound, for comparison. Stands alone: it runs in the peer's own environment.

PEER/bin/python benchmarks/peers/autoround_signround.py MODEL TOKENS.npy OUT --bits 4 --group-size 128 --steps 200
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokens", help="ids [samples, length], a .npy file")
    parser.add_argument("out")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="200 is AutoRound's default")
    parser.add_argument("--batch-size", type=int, default=8, help="8 is AutoRound's default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    import numpy as np
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.from_numpy(np.load(args.tokens))
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    windows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    batches = torch.utils.data.DataLoader(windows, batch_size=args.batch_size)
    rounding = AutoRound(
        model, tokenizer, bits=args.bits, group_size=args.group_size, sym=True, dataset=batches, iters=args.steps,
        seqlen=ids.shape[1], nsamples=len(ids), batch_size=args.batch_size, device_map=args.device,
    )  # fmt: skip
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    # "fake" writes weights that lie on the grid, unpacked: what every evaluator can read.
    rounding.quantize_and_save(args.out, format="fake")
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    inner = next(Path(args.out).glob("*/config.json"), None)  # some versions save in a folder of the model's name
    if inner is not None:
        for path in inner.parent.iterdir():
            path.rename(Path(args.out) / path.name)
    print(json.dumps({"quantize_seconds": round(time.perf_counter() - started, 2), "quantize_cpu": round(cpu, 1)}))


if __name__ == "__main__":
    main()

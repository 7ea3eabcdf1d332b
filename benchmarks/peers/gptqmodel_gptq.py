"""GPTQ by GPTQModel, for comparison. Stands alone: it runs in the peer's own environment.

PEER/bin/python benchmarks/peers/gptqmodel_gptq.py MODEL TOKENS.npy OUT --bits 4 --group-size 128
"""

from __future__ import annotations

import argparse
import json
import os
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokens", help="ids [samples, length], a .npy file")
    parser.add_argument("out")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=1, help="1 is GPTQModel's default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    # With the default it does not start on machines of few cores.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(len(os.sched_getaffinity(0))))

    import numpy as np
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    ids = torch.from_numpy(np.load(args.tokens))
    # The device goes here alone: `load(device=...)` beside it is refused.
    config = QuantizeConfig(bits=args.bits, group_size=args.group_size, sym=True, device=args.device)
    model = GPTQModel.load(args.model, config)
    calibration = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    started = time.perf_counter()
    model.quantize(calibration, batch_size=args.batch_size)
    seconds = time.perf_counter() - started
    model.save(args.out)
    print(json.dumps({"quantize_seconds": round(seconds, 2)}))


if __name__ == "__main__":
    main()

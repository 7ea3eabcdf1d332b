"""Bits from a budget by AutoRound's AutoScheme, for comparison. Stands alone: it runs in the peer's own environment.

PEER/bin/python benchmarks/peers/autoround_autoscheme.py MODEL TEXT.jsonl OUT.json --average-bits 3.5

OUT.json is a mapping of module → bits, which `benchmarks.bits --given NAME=OUT.json` quantizes like any other
assignment. Query, key and value, and gate and up, get the same bits, as where servers multiply them as one matrix.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

GROUP = 128  # columns that share a scale of 16 bits, of each option
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", help="a .jsonl file of entries with `text`")
    parser.add_argument("out", type=Path)
    parser.add_argument("--average-bits", type=float, default=3.5, help="scales included")
    parser.add_argument("--dtype", default="float32", help="what it computes in; float32 where a processor lacks bf16")
    parser.add_argument("--samples", type=int, default=16, help="16 is AutoScheme's default")
    parser.add_argument("--length", type=int, default=256, help="256 is AutoScheme's default")
    args = parser.parse_args()

    import torch
    from auto_round import AutoRound, AutoScheme
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(args.model, dtype=getattr(torch, args.dtype))
    scheme: Any = AutoScheme(
        avg_bits=args.average_bits - 16 / GROUP, ignore_scale_zp_bits=True, shared_layers=FUSED,
        options=("W2A16", "W3A16", "W4A16", "W8A16"), nsamples=args.samples, seqlen=args.length, dataset=args.text,
    )  # fmt: skip
    rounding = AutoRound(
        model, AutoTokenizer.from_pretrained(args.model), scheme=scheme, iters=0, dataset=args.text,
        nsamples=args.samples, seqlen=args.length, device_map="cpu", enable_torch_compile=False,
        amp=args.dtype != "float32",
    )  # fmt: skip
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    _, config = rounding.quantize()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    bits = {name: one["bits"] for name, one in sorted(config.items()) if one.get("bits", 16) < 16}
    args.out.write_text(json.dumps(bits, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"modules": len(bits), "seconds": round(time.perf_counter() - started, 2), "cpu": round(cpu, 1)}))


if __name__ == "__main__":
    main()

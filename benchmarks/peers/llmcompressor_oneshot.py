"""What the scripts of llm-compressor share: one model, given tokens, a recipe of modifiers, a compressed checkpoint.

Runs in the peer's own environment; the scripts beside it import it by its file's name.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokens", help="ids [samples, length], a .npy file")
    parser.add_argument("out")
    parser.add_argument("--batch-size", type=int, default=1, help="1 is llm-compressor's default")
    parser.add_argument("--device", default="cpu", help="with cpu it is kept from seeing a GPU")
    parser.add_argument("--dtype", default="auto", help="what the model computes in; default: as it is stored")
    return parser


def integers(bits: int, group_size: int, symmetric: bool) -> dict[str, Any]:
    """Return the group of a configuration for integer weights in groups of columns, inputs as they are."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group",
        "group_size": group_size,
    }
    return {"group_0": {"targets": ["Linear"], "weights": weights}}


def compress(args: argparse.Namespace, modifiers: Callable[[], Sequence[Any]]) -> None:
    """Apply the modifiers, which are made once the device is settled, and save the result; print what it took."""
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    import numpy as np
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = np.load(args.tokens)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    dataset = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()})
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=dataset,
        recipe=list(modifiers()),
        num_calibration_samples=len(ids),
        max_seq_length=ids.shape[1],
        shuffle_calibration_samples=False,
        batch_size=args.batch_size,
        pipeline="sequential",
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    model.save_pretrained(args.out, save_compressed=True)
    tokenizer.save_pretrained(args.out)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"quantize_seconds": round(seconds, 2), "quantize_cpu": round(cpu, 1)}))

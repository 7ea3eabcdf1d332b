"""Token windows of the embedded text, made independently of the product: what every peer and the judge is given.

    python -m benchmarks.tokens calibration 128 512 tokens.npy
    python -m benchmarks.tokens calibration 128 512 tokens.npy --model FOLDER

Text is one stream of bos + tokens + eos for each document in file order, by the model's tokenizer, cut into windows,
the tail dropped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

DEMO = Path(__file__).parent.parent / "runner" / "demo"
TINY_LLAMA = DEMO / "models" / "tiny-llama"


def windows(split: str, samples: int | None, length: int, model: Path = TINY_LLAMA) -> npt.NDArray[np.int64]:
    """Ids [samples, length] of `demo:stdlib`; every window of the split where `samples` is None."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    names = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    bos, eos = (tokenizer.encode(names[key], add_special_tokens=False).ids for key in ("bos_token", "eos_token"))
    stream: list[int] = []
    with (DEMO / "data" / "stdlib" / f"{split}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            stream += bos + tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids + eos
    count = len(stream) // length
    if samples is not None:
        if samples > count:
            raise SystemExit(f"{split} has {count} windows of {length} tokens, {samples} were asked for")
        count = samples
    return np.array(stream[: count * length], dtype=np.int64).reshape(count, length)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", choices=["calibration", "evaluation", "train"])
    parser.add_argument("samples", help="a number, or 'all'")
    parser.add_argument("length", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=TINY_LLAMA, help="a folder; default: the embedded model")
    args = parser.parse_args(argv)
    ids = windows(args.split, None if args.samples == "all" else int(args.samples), args.length, args.model)
    np.save(args.out, ids)
    print(f"{args.out}: {ids.shape[0]} × {ids.shape[1]} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())

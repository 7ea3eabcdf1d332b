"""GPTQ on every grid: processor time of finding scales and of solving, for one random weight.

    python -m benchmarks.grids --rows 2048 --columns 2048 --rounds 5

Grids take turns, and each counts its fastest round; times are those of this process alone, so that other load matters
less than it does to the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from runner.methods.gptq import factorize, quantize_weight
from runner.methods.quantization_grid import make_grid
from runner.methods.quantization_scheme import stored_levels
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.presets import PRESETS

FORMATS = {
    "w4a16": "pack-quantized", "w8a8": "int-quantized", "fp8": "float-quantized", "fp8_block": "float-quantized",
    "nvfp4a16": "nvfp4-pack-quantized", "mxfp4a16": "mxfp4-pack-quantized", "mxfp8a16": "mxfp8-quantized",
}  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 2048), ("columns", 2048), ("tokens", 8192), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(words)
    torch.manual_seed(0)
    inputs = torch.randn(args.tokens, args.columns) * torch.rand(args.columns)
    weight = torch.randn(args.rows, args.columns)
    factor = factorize(2 / args.tokens * inputs.T @ inputs, dampening_fraction=0.01, act_order=True)
    importance = factor.importance()
    levels: dict[str, Levels] = {
        name: stored_levels(PRESETS[name], format, torch.bfloat16) for name, format in FORMATS.items()
    }
    scales, solving = dict.fromkeys(FORMATS, float("inf")), dict.fromkeys(FORMATS, float("inf"))
    for _ in range(args.rounds):
        for name, own in levels.items():
            grid = make_grid(weight, own, "weighted_mse", importance)
            find = partial(make_grid, weight, own, "weighted_mse", importance)
            solve = partial(quantize_weight, weight, factor, grid, keep_zeros=True)
            scales[name] = min(scales[name], seconds(find))
            solving[name] = min(solving[name], seconds(solve))
    whole = {name: scales[name] + solving[name] for name in FORMATS}
    print(f"{args.rows} × {args.columns}, processor seconds, fastest of {args.rounds} rounds:\n")
    print("| grid | scales | solving | both, times those of w4a16 |\n|---|---|---|---|")
    for name in FORMATS:
        print(f"| {name} | {scales[name]:.3f} | {solving[name]:.3f} | {whole[name] / whole['w4a16']:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What rounding and GPTQ lose on the grid of every scheme, for linear modules of the embedded model, in seconds.

    python -m benchmarks.grid_errors --layers 0 3 5 --windows 8

Second moments of inputs come from windows of calibration text; the error of outputs, as a share of their size, is
measured on as many windows of the evaluation text. Inputs are not rounded: this is about weights. Modules have the
inputs of the unchanged model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import tokens
from runner.methods.gptq import factorize, output_energy, quantize_weight
from runner.methods.quantization_grid import make_grid, quantize_rtn
from runner.methods.quantization_scheme import stored_levels
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.recipe.schema.load import defaults

Moments = dict[str, torch.Tensor]


def moments(model: torch.nn.Module, names: Sequence[str], ids: torch.Tensor) -> Moments:
    """The second moment [in, in] of the inputs of each module."""
    found: Moments = {}

    def add(name: str, module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        flat = inputs[0].flatten(0, -2)
        found[name] = found.get(name, torch.zeros(())) + flat.T @ flat * (2 / ids.numel())

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(add, name)) for name in names]
    with torch.no_grad():
        for window in ids:
            model(window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def errors(name: str, weight: torch.Tensor, seen: torch.Tensor, unseen: torch.Tensor) -> list[float]:
    """Relative errors of outputs by rounding, by rounding with weighed scales, and by GPTQ."""
    levels = stored_levels(PRESETS[name], defaults("quantize.gptq", {"scheme": name})["format"], torch.bfloat16)
    factor = factorize(seen, dampening_fraction=0.01, act_order=True)
    grid = make_grid(weight, levels, "weighted_mse", factor.importance())
    made = (
        quantize_rtn(weight, levels),
        quantize_rtn(weight, levels, "weighted_mse", seen.diagonal()),
        quantize_weight(weight, factor, grid).quantized,
    )
    whole = float(output_energy(weight, unseen).sum())
    return [float(output_energy(weight - each.dequantize(torch.float32), unseen).sum()) / whole for each in made]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3, 5])
    parser.add_argument("--windows", type=int, default=8)
    args = parser.parse_args(argv)
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tokens.TINY_LLAMA, dtype=torch.float32)
    within = tuple(f"model.layers.{index}." for index in args.layers)
    names = [name for name, each in model.named_modules() if name.startswith(within) and hasattr(each, "in_features")]
    texts = (torch.from_numpy(tokens.windows(split, args.windows, 512)) for split in ("calibration", "evaluation"))
    seen, unseen = (moments(model, names, ids) for ids in texts)
    print(f"{len(names)} modules, {args.windows} × 512 tokens: mean error of outputs, in percent of their size\n")
    print("| grid | rtn | rtn, `weighted_mse` | gptq | gptq / rtn: least, largest module |\n|---|---|---|---|---|")
    for scheme in PRESETS:
        with torch.no_grad():
            found = [errors(scheme, model.get_submodule(n).weight.detach(), seen[n], unseen[n]) for n in names]
        mean = [100 * sum(column) / len(found) for column in zip(*found, strict=True)]
        ratios = [solved / rounded for rounded, _, solved in found]
        print(
            f"| `{scheme}` | {mean[0]:.4f} | {mean[1]:.4f} | {mean[2]:.4f} | {min(ratios):.2f}, {max(ratios):.2f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

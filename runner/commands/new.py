"""`runner new`: a commented starter recipe for a model, which applies as it is."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import RunnerError, UsageError

if TYPE_CHECKING:
    from runner.contracts.facts import CheckpointFacts

GOALS = {
    "int4": "Quantize to INT4 with GPTQ, and check what it cost.",
    "int3": "Quantize to INT3 with GPTQ, and check what it cost.",
    "int8": "Round to INT8, which needs no calibration, and check what it cost.",
    "2of4": "Zero two of every four weights with Wanda, quantize the rest to INT4, and check what it cost.",
}
RATIOS = {"int4": 1.1, "int3": 1.25, "int8": 1.01, "2of4": 3}
LENGTH = 512  # the embedded text has no 128 windows of the 2048 tokens that papers use
GROUP_SIZES = (128, 64, 32, 16)

RECIPE = """\
# yaml-language-server: $schema=recipe.schema.json
# (`runner schema > recipe.schema.json` writes that file into this folder; editors then complete and check it.)
version: 1
name: {name}
description: {description}

# What `--set NAME=VALUE` can change without editing this file.
params:
  model: {model}
{params}
# A Hub id, a local folder, or an embedded demo model. A Hub model may have a `revision`: a branch, tag or commit.
model: {{source: "${{model}}"}}
seed: 0

# Texts. `source` is a Hub dataset, a local .txt, .jsonl or .parquet file, or the embedded demo:stdlib.
# Replace it by text like that which the model is to work on: the quality of the result depends on it.
data:
{calibration}  evaluation: {{source: demo:stdlib, split: evaluation, samples: 64, sequence_length: {length}}}

# Each step takes the checkpoint of the nearest step before it that makes one. `runner steps` lists the kinds.
steps:
  # The perplexity of the model as it is, to compare with.
  - evaluate.perplexity: {{data: evaluation}}
    id: baseline

{steps}
  # The same for the result. A missed gate ends apply with exit code 3 and keeps everything.
  - evaluate.perplexity:
      data: evaluation
      gates: {{perplexity: {{max_ratio_to: baseline, value: {ratio}}}}}
    id: quality
"""
CALIBRATION = """\
  # 128 windows are usual; papers take them 2048 tokens long, for which the embedded text is too short.
  calibration: {{source: demo:stdlib, split: calibration, samples: 128, sequence_length: {length}}}
"""
GPTQ = """\
  # GPTQ makes up for each rounding error in the columns still to come. A smaller group_size (32) is closer to the
  # original and takes more room; `runner steps quantize.gptq` explains every parameter.
  - quantize.gptq: {data: calibration, bits: "${bits}", group_size: "${group_size}"}
"""
RTN = """\
  # Round to nearest, one scale for each row: fast, and at 8 bits nearly without loss.
  - quantize.rtn: {bits: "${bits}", group_size: channel}
"""
WANDA = """\
  # Of every four neighbouring weights the two that matter least become zero; the quantizer keeps them zero.
  - prune.wanda: {data: calibration, pattern: "${pattern}"}

"""


@dataclass(frozen=True)
class Options:
    model: str
    output: str | None
    goal: str
    force: bool


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hub id, a local folder, or `demo:tiny-llama`")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: MODEL-GOAL.yaml; - prints it")
    parser.add_argument("--goal", choices=tuple(GOALS), default="int4", help="what to make of it; default: int4")
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def read_options(args: argparse.Namespace) -> Options:
    return Options(args.model, args.output, args.goal, args.force)


def run(opts: Options) -> int:
    name = recipe_name(opts.model, opts.goal)
    facts = _facts(opts.model)
    text = starter(opts.model, opts.goal, name, facts)
    if opts.output == "-":
        print(text, end="")
        return 0
    path = Path(opts.output or f"{name}.yaml")
    try:
        with open(path, "w" if opts.force else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists already", "--force overwrites it, -o FILE names another") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "-o FILE names another") from None
    print(f"wrote {path}")
    print(f"  runner plan {shlex.quote(str(path))}    shows what it would do and cost")
    print(f"  runner apply {shlex.quote(str(path))}   does it")
    return 0


def recipe_name(model: str, goal: str) -> str:
    """Return `llama-3-8b-int4` for `meta-llama/Llama-3-8B`: lower-case letters, digits and dashes only."""
    last = re.split(r"[/:\\]", model.rstrip("/\\"))[-1]
    return re.sub(r"[^a-z0-9]+", "-", f"{last}-{goal}".lower()).strip("-")


def starter(model: str, goal: str, name: str, facts: CheckpointFacts | None) -> str:
    """Return the recipe's text. Sizes fit the model where `facts` are given (it is on this machine)."""
    limit = facts.config.context if facts else 0
    length = min(LENGTH, limit) if limit > 0 else LENGTH
    calibrated = goal != "int8"
    params = '  pattern: "2:4"\n  bits: 4\n' if goal == "2of4" else f"  bits: {goal.removeprefix('int')}\n"
    steps = {"int8": RTN, "2of4": WANDA + GPTQ}.get(goal, GPTQ)
    return RECIPE.format(
        name=name, description=GOALS[goal], model=_scalar(model), length=length, ratio=RATIOS[goal], steps=steps,
        params=params + (f"  group_size: {_group_size(facts)}\n" if calibrated else ""),
        calibration=CALIBRATION.format(length=length) if calibrated else "",
    )  # fmt: skip


def _scalar(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][\w./-]*(:[\w.-]+)?", text) else json.dumps(text, ensure_ascii=False)


def _group_size(facts: CheckpointFacts | None) -> int | str:
    """Return the largest common group size that divides the columns of every linear module, else "channel"."""
    columns = {linear.columns for linear in facts.sites} if facts else set()
    return next((size for size in GROUP_SIZES if all(n % size == 0 for n in columns)), "channel")


def _facts(model: str) -> CheckpointFacts | None:
    """Read the model's facts from its headers where it is on this machine, else None; the Hub is not queried."""
    if not model.startswith("demo:") and not Path(model).is_dir():
        return None
    from runner.model.architecture.inspect import facts
    from runner.model.source.locate import locate_model
    from runner.recipe.types import ModelSpec

    try:
        path, _ = locate_model(ModelSpec(model))
        return facts(path, model) if path is not None else None
    except RunnerError:
        return None

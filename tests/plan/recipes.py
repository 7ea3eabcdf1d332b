"""Recipes and fake kinds for tests of the planner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from runner.recipe.load import loads
from runner.recipe.types import Recipe

HEAD = """\
version: 1
name: small
model: {source: "demo:tiny-llama"}
seed: 7
data:
  calibration: {source: "demo:stdlib", split: calibration, samples: 8, sequence_length: 64}
  evaluation: {source: "demo:stdlib", split: evaluation, samples: 4, sequence_length: 64}
"""

STEPS = """\
steps:
  - evaluate.perplexity: {data: evaluation}
    id: baseline
  - prune.wanda: {data: calibration, sparsity: 0.2}
  - quantize.gptq: {data: calibration, bits: 4}
  - evaluate.perplexity: {data: evaluation, gates: {perplexity: {max_ratio_to: baseline, value: 1.25}}}
    id: quality
"""


def recipe(steps: str = STEPS, head: str = HEAD) -> Recipe:
    return loads(dedent(head) + dedent(steps), "small.yaml")


class FakeStore:
    """A store that has what a test says."""

    def __init__(self, root: Path, done: set[str] | None = None, partial: dict[str, tuple[int, int]] | None = None):
        self.root = root
        self.done = done or set()
        self.parts = partial or {}
        self.units: dict[str, str] = {}

    def has(self, key: str) -> bool:
        return key in self.done

    def out(self, key: str) -> Path:
        return self.root / key

    def partial(self, key: str) -> tuple[int, int] | None:
        return self.parts.get(key)

    def unit(self, key: str) -> str:
        return self.units.get(key, "layer")


def lines(text: str) -> Iterator[str]:
    return iter(text.splitlines())

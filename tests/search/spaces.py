"""Searches and results for tests, without jobs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from runner.recipe.search_types import Constraint, Dimension, Objective, Search, Value
from runner.search.study import Study
from runner.search.trial import MET, MISSED, Trial

SPACE = (
    Dimension("method", ("rtn", "gptq")),
    Dimension("bits", low=2, high=8),
    Dimension("damp", low=0.001, high=0.1, log=True, when='method == "gptq"'),
)
DEFAULTS: dict[str, Value] = {"method": "gptq", "bits": 4, "damp": 0.01}


def search(sampler: str = "tpe", *, two: bool = True, trials: int | None = 24, batch: int = 4, seed: int = 0) -> Search:
    objectives = (Objective("quality", "perplexity"), Objective("weights", "bytes"))[: 2 if two else 1]
    limits = (Constraint("weights", "bytes", max=6.0),)
    return Search(SPACE, objectives, limits, trials, None, sampler, seed, batch)


def result(found: Search, number: int, values: Mapping[str, Value]) -> Trial:
    """A trial whose perplexity falls with bits, is best at a dampening of 0.01, and whose bytes are its bits."""
    bits, damp = float(values["bits"]), float(values.get("damp", 0.05))
    perplexity = 10 + 8 / bits + abs(math.log10(damp / 0.01))
    measured = (perplexity, bits, bits) if len(found.objectives) > 1 else (perplexity, bits)
    over = max(0.0, (bits - 6) / 6)
    state = MISSED if over else MET
    return Trial(number, dict(values), state, measured, over, "too large" if over else "", f"job-{number}", {})


def run(found: Search, stop: int | None = None) -> Study:
    """A study asked and told to its end, or for so many batches."""
    study = Study(found, DEFAULTS)
    count = 0
    while (count := count + 1) <= (stop or 10**6) and (proposals := study.batch()):
        study.tell(proposals, [result(found, one.number, one.values) for one in proposals])
    return study

"""Whole messages about `search`."""

from __future__ import annotations

import pytest

from runner.recipe.load import loads
from tests.recipe.cases import HEAD, Case, complaint_of

PARAMS = "params: {bits: 4, ratio: 0.5, method: rtn, idle: 1}\n"
STEPS = """\
steps:
  - prune.magnitude: {sparsity: "${ratio}"}
  - quantize.rtn: {bits: "${bits}"}
    id: weights
    when: method == "rtn"
  - evaluate.perplexity: {data: text}
    id: quality
"""
DATA = "data: {text: {source: t, sequence_length: 8}}\n"
GOAL = "  objectives: [{step: quality, metric: perplexity, direction: minimize}]\n"
TWICE = """\
  objectives:
    - {step: quality, metric: perplexity, direction: minimize}
    - {step: quality, metric: perplexity, direction: maximize}
"""
BUDGET = "  budget: {trials: 4}\n"


def searched(space: str = "    bits: [3, 4]\n", goal: str = GOAL, budget: str = BUDGET, more: str = "") -> str:
    return f"{HEAD}{PARAMS}{DATA}search:\n  space:\n{space}{goal}{budget}{more}{STEPS}"


CASES = [
    Case("unknown", searched("    bist: [3, 4]\n"), """\
r.yaml:8:5: error[R821]: `search` names `bist`, which is no param; did you mean `bits`?
    8 |     bist: [3, 4]
      |     ^^^^
help: params of this recipe: `bits`, `ratio`, `method` and `idle`"""),
    Case("type", searched("    bits: [3, many]\n"), """\
r.yaml:8:5: error[R822]: `bits` must be an integer, as its default 4 is; got "many"
    8 |     bits: [3, many]
      |     ^^^^"""),
    Case("range-of-text", searched("    method: {low: 1, high: 2}\n"), """\
r.yaml:8:5: error[R822]: `method` has a range, and its default "rtn" is no number
    8 |     method: {low: 1, high: 2}
      |     ^^^^^^
help: list its values: `[...]`"""),
    Case("twice", searched("    bits: [3, 3]\n"), """\
r.yaml:8:5: error[R823]: `bits` has 3 twice in `search`
    8 |     bits: [3, 3]
      |     ^^^^
help: remove one of them"""),
    Case("empty-range", searched("    bits: {low: 8, high: 2}\n"), """\
r.yaml:8:5: error[R823]: the range of `bits` goes from 8 to 2, which is no range
    8 |     bits: {low: 8, high: 2}
      |     ^^^^
help: make `low` smaller than `high`"""),
    Case("log-of-nothing", searched("    ratio: {low: 0, high: 0.5, log: true}\n"), """\
r.yaml:8:5: error[R823]: the range of `ratio` begins at 0, and `log` needs numbers above 0
    8 |     ratio: {low: 0, high: 0.5, log: true}
      |     ^^^^^
help: raise `low`, or leave `log` out"""),
    Case("uneven-step", searched("    bits: {low: 2, high: 8, step: 4}\n"), """\
r.yaml:8:5: error[R823]: the range of `bits` never reaches 8 in steps of 4
    8 |     bits: {low: 2, high: 8, step: 4}
      |     ^^^^
help: end it at 6, or change `step`"""),
    Case("fixed", searched(), """\
r.yaml:7:3: error[R823]: `search` leaves nothing to vary
    7 |   space:
      |   ^^^^^
help: `--set` fixes `bits`""", ("bits=3",)),
    Case("condition", searched("    bits: {choices: [3, 4], when: bits}\n"), """\
r.yaml:8:29: error[R824]: `when: bits` of `bits` cannot be evaluated: it is 4, neither true nor false
    8 |     bits: {choices: [3, 4], when: bits}
      |                             ^^^^
help: write a comparison of params, such as `bits < 8`"""),
    Case("later", searched("    bits: {choices: [3, 4], when: ratio < 1}\n    ratio: {low: 0.1, high: 0.5}\n"), """\
r.yaml:8:29: error[R824]: `when: ratio < 1` of `bits` names `ratio`, which is chosen later
    8 |     bits: {choices: [3, 4], when: ratio < 1}
      |                             ^^^^
help: move `bits` below it, or name another param"""),
    Case("never", searched("    bits: [3, 4]\n    ratio: {low: 0.1, high: 0.5, when: bits > 4}\n"), """\
r.yaml:9:34: error[R824]: `ratio` never varies: `when: bits > 4` is false whatever the params above it are
    9 |     ratio: {low: 0.1, high: 0.5, when: bits > 4}
      |                                  ^^^^
help: change the condition, or take the param out"""),
    Case("no-step", searched(goal="  objectives: [{step: qualty, metric: perplexity, direction: minimize}]\n"), """\
r.yaml:9:17: error[R825]: `search` measures `qualty`, which is no step; did you mean `quality`?
    9 |   objectives: [{step: qualty, metric: perplexity, direction: minimize}]
      |                 ^^^^
help: steps of this recipe: `magnitude`, `weights` and `quality`"""),
    Case("not-measured", searched(goal="  objectives: [{step: quality, metric: bytes, direction: minimize}]\n"), """\
r.yaml:9:32: error[R825]: `evaluate.perplexity` does not measure `bytes`
    9 |   objectives: [{step: quality, metric: bytes, direction: minimize}]
      |                                ^^^^^^
help: it measures `perplexity`, `loss`, `tokens` and `windows`"""),
    Case("objective-twice", searched(goal=TWICE), """\
r.yaml:11:7: error[R826]: `quality.perplexity` is an objective twice
   11 |     - {step: quality, metric: perplexity, direction: maximize}
      |       ^
help: remove one of them"""),
    Case("no-trials", searched(budget="  budget: {trials: 0}\n"), """\
r.yaml:10:20: error[R204]: `search.budget.trials` must be an integer from 1 to 10000; got 0
   10 |   budget: {trials: 0}
      |                    ^"""),
    Case("no-time", searched(budget="  budget: {time: 0h}\n"), """\
r.yaml:10:12: error[R827]: `search.budget.time` is "0h": nothing can run in it
   10 |   budget: {time: 0h}
      |            ^^^^
help: give it some time, such as `30m`"""),
    Case("no-budget", searched(budget="  budget: {}\n"), """\
r.yaml:10:3: error[R207]: `search.budget` must have at least 1 entry; it has 0
   10 |   budget: {}
      |   ^^^^^^
help: write `budget: {trials: 40}` or `budget: {time: 2h}`"""),
    Case("constraints", searched(more="  constraints: [{step: weights, metric: bytes, min: 9, max: 5}]\n"), """\
r.yaml:11:17: error[R828]: `weights.bytes` must be at least 9 and at most 5, which nothing is
   11 |   constraints: [{step: weights, metric: bytes, min: 9, max: 5}]
      |                 ^
help: change one of the limits"""),
    Case("idle", searched("    idle: [1, 2]\n"), """\
r.yaml:8:5: error[R829]: `idle` changes nothing: the recipe nowhere refers to `${idle}`
    8 |     idle: [1, 2]
      |     ^^^^
help: write `${idle}` where the value belongs, or take it out"""),
    Case("endless-grid", searched("    ratio: {low: 0.1, high: 0.5}\n", more="  sampler: grid\n"), """\
r.yaml:11:3: error[R830]: the sampler `grid` tries every combination, and `ratio` has endlessly many values
   11 |   sampler: grid
      |   ^^^^^^^
help: give it a `step` or `choices`, or use another sampler"""),
    Case("matrix", searched(more="matrix: {bits: [3, 4]}\n"), """\
r.yaml:6:1: error[R831]: a recipe has `matrix` or `search`, not both: each decides which jobs there are
    6 | search:
      | ^^^^^^
help: keep one of them"""),
    Case("form", searched("    bits: {low: 2}\n"), """\
r.yaml:8:5: error[R208]: `search.space.bits` must be a list of values, or a range `{low: 2, high: 8}`; got `low`
    8 |     bits: {low: 2}
      |     ^^^^"""),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_message(case: Case) -> None:
    assert complaint_of(case.text, case.sets) == case.message


def test_what_set_decides_varies_no_more() -> None:
    """Also the params whose condition is false then."""
    space = '    method: [rtn, gptq]\n    bits: [3, 4]\n    ratio: {low: 0.1, high: 0.5, when: method == "gptq"}\n'
    found = loads(searched(space), "r.yaml", ("method=rtn",)).search
    assert found is not None
    assert [one.name for one in found.space] == ["bits"]

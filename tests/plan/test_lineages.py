"""How the checkpoints of a plan come to be, and what their model cards say of it."""

from __future__ import annotations

import pytest

from runner.contracts.lineage import Lineage
from runner.model import card
from runner.plan import lineages
from runner.plan.resolve import resolve
from runner.plan.types import Plan
from tests.plan.recipes import recipe

SHOWN = ("sparsity", "pattern", "bits", "rank", "student")


def plan(steps: str) -> Plan:
    return resolve(recipe("steps:\n" + steps))


def what_was_done(plan: Plan, id: str) -> str:
    """The list in the card of the step `id`, with the parameters of SHOWN alone."""
    lineage = lineages.lineage_of(plan, id)
    steps = [(s.kind, {key: s.params[key] for key in SHOWN if key in s.params}) for s in lineage.steps]
    made = card.ModelCard(lineage.source, "LlamaForCausalLM", steps, 1000, 500, plan.recipe.name)
    return card.text(made).partition("## What was done\n\n")[2].partition("\n\n")[0]


TWO_PRUNINGS = """\
  - prune.wanda: {data: calibration, sparsity: 0.2}
    id: first
  - evaluate.perplexity: {data: evaluation}
  - prune.wanda: {data: calibration, sparsity: 0.2}
    id: second
"""
QUANTIZE_RECOVER = """\
  - quantize.gptq: {data: calibration, bits: 4, group_size: 32}
    id: four
  - prune.wanda: {data: calibration, sparsity: 0.5}
    from: model
    id: aside
  - recover.lora: {data: calibration, rank: 4, merge: keep, loss: distill, teacher: aside, steps: 1, batch_size: 1}
    from: four
    id: recovered
"""
PRUNE_DISTILL_QUANTIZE = """\
  - prune.magnitude: {sparsity: 0.3}
    id: sparse
  - distill.logits: {data: calibration, teacher: model, student: {drop: 1}, steps: 1, batch_size: 1}
    id: small
  - quantize.rtn: {bits: 8, group_size: 32}
    id: eight
"""


@pytest.mark.parametrize(
    ("steps", "id", "expected"),
    [
        (
            TWO_PRUNINGS,
            "second",
            """\
1. `prune.wanda`: sparsity 0.2, pattern `unstructured`
2. `prune.wanda`: sparsity 0.2, pattern `unstructured`""",
        ),
        (TWO_PRUNINGS, "first", "1. `prune.wanda`: sparsity 0.2, pattern `unstructured`"),
        (QUANTIZE_RECOVER, "recovered", "1. `quantize.gptq`: bits 4\n2. `recover.lora`: rank 4"),
        (
            PRUNE_DISTILL_QUANTIZE,
            "eight",
            """\
1. `prune.magnitude`: sparsity 0.3, pattern `unstructured`
2. `distill.logits`: student drop: 1; choose: `influence`
3. `quantize.rtn`: bits 8""",
        ),
    ],
    ids=["two prunings", "the first of them", "quantize, recover", "prune, distill, quantize"],
)
def test_the_card_names_every_step_that_made_the_checkpoint(steps: str, id: str, expected: str) -> None:
    assert what_was_done(plan(steps), id) == expected


def test_a_model_has_no_steps() -> None:
    assert lineages.lineage_of(plan(TWO_PRUNINGS), "model") == Lineage("demo:tiny-llama")


def test_a_student_of_its_own_is_what_the_result_is_made_from() -> None:
    steps = """\
  - prune.magnitude: {sparsity: 0.3}
    id: sparse
  - distill.logits:
      {data: calibration, teacher: sparse, student: {source: "demo:tiny-llama"}, steps: 1, batch_size: 1}
    id: small
"""
    found = lineages.lineage_of(plan(steps), "small")
    assert [step.id for step in found.steps] == ["small"]

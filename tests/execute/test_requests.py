"""What the worker is asked to do for a step of a plan."""

from __future__ import annotations

from pathlib import Path

from runner.contracts.lineage import Lineage
from runner.execute.messages import decode, encode_run
from runner.execute.requests import request
from runner.execute.settings import ApplySettings
from runner.plan.resolve import resolve
from tests.plan.recipes import STEPS, recipe


def test_the_worker_gets_the_lineage_of_each_input(tmp_path: Path) -> None:
    plan = resolve(recipe())
    asked = request(plan, plan.step("baseline"), {}, tmp_path, ApplySettings("runner apply small.yaml"))
    again = decode(encode_run(asked))
    assert again == asked
    assert asked.inputs["checkpoint"].lineage == Lineage("demo:tiny-llama")
    assert (asked.step.id, asked.step.kind) == ("baseline", "evaluate.perplexity")
    assert asked.step.params == plan.step("baseline").params


def test_the_worker_gets_the_limits_at_which_a_step_may_end_early(tmp_path: Path) -> None:
    gates = "gates: {perplexity: {max: 20}, loss: {min: 1}}"
    plan = resolve(recipe(STEPS.replace("{data: evaluation}", f"{{data: evaluation, {gates}}}", 1)))
    asked = request(plan, plan.step("baseline"), {}, tmp_path, ApplySettings("runner apply small.yaml"))
    again = decode(encode_run(asked))
    assert again is not None
    assert again.limits == {"perplexity": 20.0}

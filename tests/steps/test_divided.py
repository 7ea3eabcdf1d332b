"""Steps whose work several processes share: what is refused, what is no part of the key, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runner.contracts.facts import CheckpointFacts
from runner.contracts.mixtures import Mixture
from runner.contracts.model_description import ModelDescription
from runner.contracts.step_kind import DataFacts, Inputs, MachineFacts
from runner.execute.requests import published
from runner.model.architecture import inspect
from runner.model.checkpoint import headers
from runner.recipe.schema.load import defaults
from runner.steps.kinds import find

CPU = MachineFacts(4, 10**10, 10**10, "cpu", 0, None, 1e11, 5e8)
DEMO = Path(headers.__file__).parents[2] / "demo" / "models" / "tiny-llama"
KINDS = ["quantize.gptq", "prune.wanda", "prune.sparsegpt", "evaluate.perplexity"]


def described() -> CheckpointFacts:
    facts = inspect.facts(DEMO, "demo")
    return replace(facts, description=ModelDescription())


def given(processes: int, machine: MachineFacts = CPU, facts: CheckpointFacts | None = None) -> Inputs:
    data = {"data": DataFacts("text", 64, 128, 10**6, "0" * 64)}
    return Inputs(facts or described(), {}, data, machine, processes)


def said(kind: str, inputs: Inputs) -> list[str]:
    return [found.render() for found in find(kind).check(defaults(kind, {"data": "text"}), inputs)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_processes_cannot_share(kind: str) -> None:
    assert said(kind, given(4)) == []
    assert said(kind, given(8, replace(CPU, device="cuda"))) == []
    assert said(kind, given(5)) == [
        "error[R484]: `resources: {processes: 5}` is more than the 4 cores of the machine\nhelp: use at most 4"
    ]
    assert said(kind, given(9)) == [
        (
            "error[R714]: `resources: {processes: 9}` is more than the 8 parts that the batches of a step are divided "
            "into\nhelp: use at most 8"
        )
    ]
    assert said(kind, given(2, replace(CPU, device="mps"))) == [
        (
            "error[R714]: `resources: {processes: 2}`: on an Apple GPU one process runs a step\n"
            "help: leave `processes` out, or use `--device cpu`"
        )
    ]


def test_experts_are_changed_by_one_process() -> None:
    facts = described()
    mixture = Mixture("model.layers.0.mlp.experts", 0, 4, (), 2)
    assert facts.description is not None
    linears = replace(facts.linears, mixtures=(mixture,))
    mixed = replace(facts, description=replace(facts.description, linears=linears))
    refused = (
        "error[R713]: `resources: {processes: 2}`: the experts of a mixture are changed by one process\n"
        "help: leave `processes` out"
    )
    assert refused in said("quantize.gptq", given(2, facts=mixed))
    assert refused not in said("quantize.gptq", given(1, facts=mixed))
    assert said("evaluate.perplexity", given(2, facts=mixed)) == []


def test_what_is_published_names_processes_only_where_they_change_a_result() -> None:
    steps = [
        {"quantize.gptq": {"data": "text"}, "resources": {"processes": 2, "cpus": 4}},
        {"recover.lora": {"data": "text"}, "resources": {"processes": 2, "cpus": 4}},
    ]
    assert published({"version": 1, "steps": steps}).splitlines()[2:] == [
        "  - quantize.gptq: {data: text}", "  - recover.lora: {data: text}", "    resources: {processes: 2}",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_takes_memory(kind: str) -> None:
    params = defaults(kind, {"data": "text"})
    one, two, four = (find(kind).estimate(params, given(count)) for count in (1, 2, 4))
    assert 400e6 < two.memory - one.memory < 900e6
    assert four.memory - two.memory == 2 * (two.memory - one.memory)

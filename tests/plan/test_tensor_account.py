"""The account of tensors: every tensor of the input has a fate and a reason, or the plan stops."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runner.contracts.account import Account, TensorFate
from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.model_config import ModelConfig
from runner.contracts.model_description import ModelDescription
from runner.contracts.planned_account import Entry, PlannedAccount, check_written
from runner.errors import StepFailed
from runner.plan.tensor_account import account

L = "model.layers.0."


def tensor(name: str, *shape: int) -> TensorHeader:
    size = 2
    for extent in shape:
        size *= extent
    return TensorHeader(name, "BF16", shape, "", 0, size)


def facts(*tensors: TensorHeader, ignored: tuple[str, ...] = (), layers: int = 1) -> CheckpointFacts:
    described = ModelDescription(ties={"lm_head.weight": "model.embed_tokens.weight"}, ignored=ignored)
    held = {each.name: each for each in tensors}
    return CheckpointFacts("m", ModelConfig.of({}), held, "model.layers.", layers, (), description=described)


EMBEDDING, NORM = tensor("model.embed_tokens.weight", 8, 4), tensor("model.norm.weight", 4)
DOWN, PASSED = tensor(f"{L}mlp.down_proj.weight", 4, 4), tensor("mtp.layers.0.q_proj.weight", 4, 4)
BEFORE = facts(EMBEDDING, DOWN, NORM, PASSED, ignored=(PASSED.name,))


def fates(found: PlannedAccount) -> dict[str, str]:
    return {entry.name: f"{entry.fate}: {entry.reason}" for entry in found.entries}


def test_a_packed_weight_is_changed_and_the_rest_has_its_reasons() -> None:
    packed = facts(EMBEDDING, NORM, PASSED, tensor(f"{L}mlp.down_proj.weight_packed", 4, 1))
    found, complaints = account(BEFORE, packed, {DOWN.name})
    assert complaints == []
    assert fates(found) == {
        EMBEDDING.name: "kept: the step does not concern it",
        DOWN.name: "changed: stored as weight_packed",
        NORM.name: "kept: the step does not concern it",
        PASSED.name: "passed: the architecture leaves it unread",
        "lm_head.weight": "tied: shares `model.embed_tokens.weight`",
    }
    assert found.document() == {
        "roles": {
            "embedding": {"kept": {"tensors": 1, "bytes": 64}},
            "down": {"changed": {"tensors": 1, "bytes": 32}},
            "mtp": {"passed": {"tensors": 1, "bytes": 32}},
            "norm": {"kept": {"tensors": 1, "bytes": 8}},
            "head": {"tied": {"tensors": 1, "bytes": 0}},
        },
        "reasons": {
            "changed": {"stored as weight_packed": 1},
            "kept": {"the step does not concern it": 2},
            "passed": {"the architecture leaves it unread": 1},
            "tied": {"shares `model.embed_tokens.weight`": 1},
        },
    }


def test_a_format_may_keep_the_name_of_the_weight() -> None:
    bytes_ = TensorHeader(DOWN.name, "F8_E4M3", (4, 4), "", 0, 16)
    packed = facts(EMBEDDING, NORM, PASSED, bytes_, tensor(f"{L}mlp.down_proj.weight_scale", 4, 1))
    found, complaints = account(BEFORE, packed, {DOWN.name})
    assert complaints == []
    assert fates(found)[DOWN.name] == "changed: stored as weight, weight_scale"


def test_a_kind_that_names_nothing_changes_the_whole_model() -> None:
    found, _ = account(BEFORE, BEFORE, None)
    assert [entry.fate for entry in found.entries] == ["changed", "changed", "changed", "passed", "tied"]


def test_a_layer_left_out_is_dropped() -> None:
    found, complaints = account(facts(DOWN), facts(layers=0), None)
    assert complaints == []
    assert fates(found)[DOWN.name] == "dropped: 0 of 1 decoder layers stay"


def test_what_nothing_explains_is_refused() -> None:
    after = facts(EMBEDDING, DOWN, PASSED, tensor("model.extra.weight", 4))
    _, complaints = account(BEFORE, after, {DOWN.name})
    assert [each.render().splitlines()[0] for each in complaints] == [
        "error[R417]: nothing explains why `model.norm.weight` would not be written",
        "error[R417]: nothing explains why `model.extra.weight` would be written",
    ]


def test_packed_tensors_need_a_weight_that_the_step_changes() -> None:
    after = replace(BEFORE, tensors={**BEFORE.tensors, "x": tensor(f"{L}mlp.down_proj.weight_packed", 4, 1)})
    assert len(account(BEFORE, after, ())[1]) == 1


def test_what_was_written_is_what_was_planned() -> None:
    planned: dict[str, tuple[int, ...]] = {"a": (2, 2), "b": (2,), "c": (3,)}
    account = Account({"a": TensorFate("copied", ("a",)), "b": TensorFate("changed", ("b",))})
    check_written(planned, dict(planned), ("a",), account)
    with pytest.raises(StepFailed) as caught:
        check_written(planned, {"a": (2, 2), "b": (3,), "d": (1,)}, ("a", "b", "c"), account)
    assert caught.value.message == (
        "the checkpoint that was written is not the planned one: `c` is missing; `d` is there and not planned; "
        "`b` is of another shape than planned; `b` is planned to stay and not copied from the input"
    )


def test_roles_come_in_the_order_of_their_bytes() -> None:
    entries = (Entry("a", "norm", "kept", "", 1), Entry("b", "q", "kept", "", 5), Entry("c", "q", "changed", "", 2))
    assert PlannedAccount(entries, {}).by_role() == {"q": {"kept": (1, 5), "changed": (1, 2)}, "norm": {"kept": (1, 1)}}

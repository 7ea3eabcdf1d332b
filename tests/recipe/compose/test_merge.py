"""Steps of a child among those of its parent, and what the two may contradict each other in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.recipe.compose import merge
from runner.recipe.load import load
from runner.recipe.schema import step_entries
from runner.recipe.syntax.nodes import Node
from tests.recipe.elsewhere import complaint_of, write

PARENT = """\
version: 1
name: parent
params: {bits: 4}
model: {source: "demo:tiny-llama"}
steps:
  - prune.magnitude: {sparsity: 0.5}
    id: prune
  - quantize.rtn: {bits: "${bits}", group_size: channel}
    id: rtn
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parent.yaml").write_text(PARENT, encoding="utf-8")
    return tmp_path


def made(*lines: str) -> list[str]:
    """The ids of the steps of a child with these lines of `steps`."""
    return [step.id for step in load(child(*lines)).steps]


def child(*lines: str, head: str = "") -> str:
    return write("child.yaml", f"extends: parent.yaml\n{head}steps:\n" + "".join(f"  {line}\n" for line in lines))


def test_a_step_is_removed() -> None:
    assert made("- {id: prune, remove: true}") == ["rtn"]


def test_a_step_is_put_before_or_after_another() -> None:
    more = "prune.magnitude: {sparsity: 0.1}"
    assert made(f"- {{id: a, before: prune, {more}}}") == ["a", "prune", "rtn"]
    assert made(f"- {{id: a, after: prune, {more}}}") == ["prune", "a", "rtn"]
    assert made(f"- {{id: a, before: rtn, {more}}}") == ["prune", "a", "rtn"]


def test_several_steps_at_one_place_stand_as_written() -> None:
    more = "prune.magnitude: {sparsity: 0.1}"
    for side in ("before: rtn", "after: prune"):
        assert made(*(f"- {{id: {id}, {side}, {more}}}" for id in "abc")) == ["prune", "a", "b", "c", "rtn"]


def test_a_step_of_the_child_can_be_the_place_of_another() -> None:
    more = "prune.magnitude: {sparsity: 0.1}"
    lines = (f"- {{id: a, before: rtn, {more}}}", f"- {{id: b, before: a, {more}}}")
    assert made(*lines) == ["prune", "b", "a", "rtn"]


def test_a_step_of_the_parent_moves_and_keeps_what_is_not_changed() -> None:
    recipe = load(child("- {id: prune, after: rtn, prune.magnitude: {pattern: '2:4'}, from: model}"))
    assert [step.id for step in recipe.steps] == ["rtn", "prune"]
    assert (recipe.steps[1].params["sparsity"], recipe.steps[1].params["pattern"]) == (0.5, "2:4")


def test_a_removed_id_is_free() -> None:
    write("middle.yaml", "extends: parent.yaml\nsteps: [{id: prune, remove: true}]\n")
    write("child.yaml", "extends: middle.yaml\nsteps: [{id: prune, before: rtn, prune.magnitude: {sparsity: 0.1}}]\n")
    recipe = load("child.yaml")
    assert [(step.id, step.params.get("sparsity")) for step in recipe.steps] == [("prune", 0.1), ("rtn", None)]


def test_the_standalone_recipe_has_none_of_these_keys() -> None:
    recipe = load(child("- {id: a, before: rtn, prune.magnitude: {sparsity: 0.1}}"))
    assert not [key for step in recipe.document["steps"] for key in step_entries.PLACING if key in step]


CONFLICTS = [
    (
        "a step that is not there is removed",
        ("- {id: prun, remove: true}",),
        """\
child.yaml:3:10: error[R127]: `remove` names `prun`, which is no step of parent.yaml; did you mean `prune`?
    3 |   - {id: prun, remove: true}
      |          ^^^^
help: there are `prune` and `rtn`""",
    ),
    (
        "a place that is not there",
        ("- {id: a, after: rtm, quantize.rtn: {bits: 8}}",),
        """\
child.yaml:3:20: error[R127]: `after` names `rtm`, which is no step of parent.yaml; did you mean `rtn`?
    3 |   - {id: a, after: rtm, quantize.rtn: {bits: 8}}
      |                    ^^^
help: there are `prune` and `rtn`""",
    ),
    (
        "itself",
        ("- {id: rtn, after: rtn}",),
        """\
child.yaml:3:22: error[R127]: `after` names the step itself
    3 |   - {id: rtn, after: rtn}
      |                      ^^^
help: there are `prune` and `rtn`""",
    ),
    (
        "not an id",
        ("- {id: a, after: [rtn], quantize.rtn: {bits: 8}}",),
        """\
child.yaml:3:20: error[R127]: `after` must be the id of a step; got a list
    3 |   - {id: a, after: [rtn], quantize.rtn: {bits: 8}}
      |                    ^
help: there are `prune` and `rtn`""",
    ),
    (
        "removed and needed as a place",
        ("- {id: prune, remove: true}", "- {id: a, after: prune, quantize.rtn: {bits: 8}}"),
        """\
child.yaml:4:20: error[R128]: `after` names `prune`, which is removed at child.yaml:3:5
    4 |   - {id: a, after: prune, quantize.rtn: {bits: 8}}
      |                    ^^^^^
help: leave one of the two out""",
    ),
    (
        "removed and changed",
        ("- {id: prune, remove: true, prune.magnitude: {sparsity: 0.1}}",),
        """\
child.yaml:3:31: error[R128]: a step that is removed cannot be changed too; this one has `prune.magnitude`
    3 |   - {id: prune, remove: true, prune.magnitude: {sparsity: 0.1}}
      |                               ^^^^^^^^^^^^^^^
help: keep `id: prune` and `remove: true` alone""",
    ),
    (
        "not removed",
        ("- {id: prune, remove: false}",),
        """\
child.yaml:3:25: error[R127]: `remove` must be true; got false
    3 |   - {id: prune, remove: false}
      |                         ^^^^^
help: leave it out""",
    ),
    (
        "nothing to remove",
        ("- {remove: true}",),
        """\
child.yaml:3:6: error[R127]: `remove` needs the `id` of the parent's step
    3 |   - {remove: true}
      |      ^^^^^^
help: there are `prune` and `rtn`""",
    ),
    (
        "two places",
        ("- {id: a, before: rtn, after: prune, quantize.rtn: {bits: 8}}",),
        """\
child.yaml:3:26: error[R128]: a step goes to one place; this one has `before` and `after`, at child.yaml:3:13
    3 |   - {id: a, before: rtn, after: prune, quantize.rtn: {bits: 8}}
      |                          ^^^^^
help: keep one of them""",
    ),
    (
        "changed twice",
        ("- {id: rtn, quantize.rtn: {bits: 8}}", "- {id: rtn, quantize.rtn: {bits: 3}}"),
        """\
child.yaml:4:10: error[R128]: the step `rtn` is changed twice; first at child.yaml:3:5
    4 |   - {id: rtn, quantize.rtn: {bits: 3}}
      |          ^^^
help: write its changes in one place""",
    ),
]


@pytest.mark.parametrize(("lines", "message"), [case[1:] for case in CONFLICTS], ids=[case[0] for case in CONFLICTS])
def test_what_does_not_fit_the_parent(lines: tuple[str, ...], message: str) -> None:
    assert complaint_of(child(*lines)) == message


def test_a_param_of_another_type_names_both_places() -> None:
    write("child.yaml", "extends: parent.yaml\nparams: {bits: four}\n")
    assert (
        complaint_of("child.yaml")
        == """\
child.yaml:2:16: error[R128]: the param `bits` is text here, and a number in the parent, at parent.yaml:3:16
    2 | params: {bits: four}
      |                ^^^^
help: give it a value of that type, or another name"""
    )


def test_a_recipe_that_extends_nothing_has_nothing_to_remove() -> None:
    write("child.yaml", PARENT + "  - {id: rtn, remove: true}\n")
    assert (
        complaint_of("child.yaml")
        == """\
child.yaml:10:15: error[R127]: `remove` places a step among those of a parent; this recipe extends none
   10 |   - {id: rtn, remove: true}
      |               ^^^^^^
help: leave it out, or add `extends`"""
    )


def test_a_reference_to_a_removed_step_is_told_where_it_stands() -> None:
    write("parent.yaml", PARENT + "  - evaluate.divergence: {data: t, against: prune}\n")
    write("child.yaml", "extends: parent.yaml\ndata: {t: {source: 'demo:stdlib', split: train, sequence_length: 8}}\n"
          "steps:\n  - {id: prune, remove: true}\n")  # fmt: skip
    assert (
        complaint_of("child.yaml")
        == """\
parent.yaml:10:45: error[R303]: `against` names `prune`, which is removed at child.yaml:4:5
   10 |   - evaluate.divergence: {data: t, against: prune}
      |                                             ^^^^^
help: it may name `model` or `rtn`"""
    )


IDS = st.lists(st.sampled_from("abcdef"), unique=True, min_size=1)


def tree(ids: list[str], **more: dict[str, Any]) -> Node:
    from runner.errors import Span

    place = Span("r.yaml", 1, 1)

    def node(value: Any) -> Node:
        if isinstance(value, dict):
            return Node({k: node(v) for k, v in value.items()}, place, dict.fromkeys(value, place))
        return Node(tuple(node(v) for v in value) if isinstance(value, list) else value, place)

    return node({"steps": [{"id": id, "quantize.rtn": {}, **more.get(id, {})} for id in ids]})


def order(root: Node) -> list[str | None]:
    return [step_entries.id_of(step) for step in root.entries["steps"].items]


@given(IDS, st.data())
def test_removing_leaves_the_others_in_their_order(ids: list[str], data: st.DataObject) -> None:
    gone = data.draw(st.lists(st.sampled_from(ids), unique=True))
    child = tree([])
    removals = [Node({"id": Node(id, child.span), "remove": Node(True, child.span)}, child.span) for id in gone]
    child = child.with_entries({"steps": Node(tuple(removals), child.span)})
    assert order(merge.merged(tree(ids), child)) == [id for id in ids if id not in gone]


@given(IDS, st.data())
def test_a_placed_step_stands_beside_its_anchor(ids: list[str], data: st.DataObject) -> None:
    anchor = data.draw(st.sampled_from(ids))
    new = data.draw(st.sampled_from([id for id in "abcdefz" if id != anchor]))
    side = data.draw(st.sampled_from(["before", "after"]))
    found = order(merge.merged(tree(ids), tree([new], **{new: {side: anchor}})))
    assert sorted(map(str, found)) == sorted({*ids, new})
    assert found.index(new) - found.index(anchor) == (-1 if side == "before" else 1)
    assert [id for id in found if id != new] == [id for id in ids if id != new]


@given(IDS, IDS)
def test_ids_stay_unique_and_the_parent_s_order_counts(parent: list[str], child: list[str]) -> None:
    found = order(merge.merged(tree(parent), tree(child)))
    assert found == [*parent, *(id for id in child if id not in parent)]

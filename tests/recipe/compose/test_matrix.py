"""`matrix`: which recipes it makes of one."""

from __future__ import annotations

import itertools

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import UsageError
from runner.recipe import load
from runner.recipe.compose import extends, matrix
from runner.recipe.load import loads_all
from runner.recipe.syntax import yaml_text
from runner.recipe.syntax.nodes import Node

HEAD = "version: 1\nname: a\nparams: {bits: 4, size: 128, ratio: 0.5, dense: false, note: x}\nmodel: {source: m}\n"
STEPS = (
    'steps:\n  - prune.magnitude: {sparsity: "${ratio}"}\n    when: not dense\n'
    '  - quantize.rtn: {bits: "${bits}", group_size: "${size}"}\n    id: "q-${note}"\n'
)


def made(written: str, *sets: str) -> list[str]:
    recipes = loads_all(f"{HEAD}matrix: {written}\n{STEPS}", "r.yaml", sets)
    return [matrix.describe(recipe.matrix) for recipe in recipes]


def test_a_recipe_without_a_matrix_is_one() -> None:
    (recipe,) = loads_all(HEAD + STEPS, "r.yaml")
    assert recipe.matrix == {}
    assert "matrix" not in recipe.document


def test_the_product_in_the_order_written() -> None:
    assert made("{bits: [3, 4], size: [64, 128]}") == [
        "bits=3, size=64", "bits=3, size=128", "bits=4, size=64", "bits=4, size=128",
    ]  # fmt: skip


def test_exclude_takes_away_all_that_it_fits() -> None:
    assert made("{bits: [3, 4, 8], size: [64, 128], exclude: [{bits: 3}, {bits: 8, size: 64}]}") == [
        "bits=4, size=64", "bits=4, size=128", "bits=8, size=128",
    ]  # fmt: skip


def test_include_adds_a_combination_whose_other_params_have_their_defaults() -> None:
    assert made("{bits: [3, 4], include: [{bits: 8, size: 64}]}") == [
        "bits=3, size=128", "bits=4, size=128", "bits=8, size=64",
    ]  # fmt: skip


def test_include_adds_params_to_the_combinations_that_it_fits() -> None:
    assert made("{bits: [3, 4], include: [{size: 32}, {bits: 4, size: 64, ratio: 0.25}]}") == [
        "bits=3, ratio=0.5, size=32", "bits=4, ratio=0.25, size=64",
    ]  # fmt: skip


def test_include_alone() -> None:
    assert made("{include: [{bits: 3}, {bits: 8, dense: true}]}") == ["bits=3, dense=false", "bits=8, dense=true"]


def test_an_integer_fits_a_param_that_is_a_number() -> None:
    assert made("{ratio: [0, 0.25]}") == ["ratio=0.0", "ratio=0.25"]


def test_text_may_hold_what_looks_like_a_reference() -> None:
    assert matrix.expand(_root('{note: ["$${x}"]}'), ())[0].combinations == ({"note": "${x}"},)


def _root(written: str) -> Node:
    return extends.merge_text(f"{HEAD}matrix: {written}\n{STEPS}", "r.yaml")


def test_set_fixes_a_param() -> None:
    written = "{bits: [3, 4], size: [64, 128], exclude: [{bits: 3, size: 64}], include: [{bits: 8, size: 32}]}"
    assert made(written, "bits=4") == ["bits=4, size=64", "bits=4, size=128"]
    assert made(written, "bits=4", "size=64") == ["bits=4, size=64"]
    assert made(written, "size=32") == ["bits=3, size=32", "bits=4, size=32", "bits=8, size=32"]
    assert made(written, "bits=2") == ["bits=2, size=64", "bits=2, size=128"]


def test_each_combination_is_a_recipe_of_its_own() -> None:
    first, second = loads_all(f"{HEAD}matrix: {{bits: [3, 4], dense: [true]}}\n{STEPS}", "r.yaml")
    assert [first.params["bits"], second.params["bits"]] == [3, 4]
    assert [step.params["bits"] for recipe in (first, second) for step in recipe.steps] == [3, 4]
    assert second.matrix == {"bits": 4, "dense": True}


def test_the_standalone_recipe_is_that_one_combination() -> None:
    for recipe in loads_all(f"{HEAD}matrix: {{bits: [3, 4], note: [y]}}\n{STEPS}", "r.yaml"):
        (again,) = loads_all(yaml_text.dump(recipe.document), "again.yaml")
        assert (again.matrix, again.document) == (recipe.matrix, recipe.document)


def test_load_takes_a_recipe_of_one_combination(tmp_path: object) -> None:
    from pathlib import Path

    file = Path(str(tmp_path)) / "r.yaml"
    file.write_text(f"{HEAD}matrix: {{bits: [3, 4]}}\n{STEPS}")
    assert load.load(file, ["bits=3"]).matrix == {"bits": 3}
    with pytest.raises(UsageError) as caught:
        load.load(file)
    assert caught.value.message == f"{file} has 2 combinations, and this takes one"
    assert caught.value.help == "fix params of its matrix with `--set`: bits"


@settings(max_examples=60, deadline=None)
@given(
    bits=st.lists(st.sampled_from([2, 3, 4, 8]), unique=True, min_size=1),
    size=st.lists(st.sampled_from([32, 64, 128]), unique=True, min_size=1),
    gone=st.lists(st.tuples(st.sampled_from([2, 3, 4, 8]), st.sampled_from([32, 64, 128])), max_size=2, unique=True),
    more=st.lists(st.tuples(st.sampled_from([5, 6, 7]), st.sampled_from([32, 64])), max_size=2, unique=True),
)
def test_the_product_less_exclude_with_include(
    bits: list[int], size: list[int], gone: list[tuple[int, int]], more: list[tuple[int, int]]
) -> None:
    product = list(itertools.product(bits, size))
    gone = [pair for pair in gone if pair in product]
    wanted = [pair for pair in product if pair not in gone] + more
    written: dict[str, object] = {"bits": bits, "size": size}
    written |= {"exclude": [{"bits": b, "size": s} for b, s in gone]} if gone else {}
    written |= {"include": [{"bits": b, "size": s} for b, s in more]} if more else {}
    if not wanted:
        return
    found = matrix.expand(_root(yaml.safe_dump(written, default_flow_style=True, width=1000).strip()), ())[0]
    assert [(c["bits"], c["size"]) for c in found.combinations] == wanted

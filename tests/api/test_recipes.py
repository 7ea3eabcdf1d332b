from __future__ import annotations

from pathlib import Path

import pytest

import runner
from runner.api.recipes import arguments
from tests.commands.conftest import RECIPE


def test_params_are_set_by_name_or_as_on_the_command_line() -> None:
    assert runner.load("toy.yaml").params == {"points": 5, "fail": False}
    assert runner.load(Path("toy.yaml"), sets={"points": 7, "fail": True}).params == {"points": 7, "fail": True}
    assert runner.load("toy.yaml", sets=["points=7"]).params["points"] == 7
    assert arguments({"a": 1e-5, "b": "x=y", "c": False}) == ("a=1e-05", "b=x=y", "c=false")


def test_a_wrong_recipe_raises_every_complaint() -> None:
    Path("toy.yaml").write_text(RECIPE.replace("points: 4", "pints: 4"), encoding="utf-8")
    with pytest.raises(runner.RecipeError) as caught:
        runner.load("toy.yaml", sets={"poins": 3})
    assert [(d.code, d.span.line if d.span else None) for d in caught.value.diagnostics] == [
        ("R223", None),
        ("R205", 7),
    ]


def test_a_matrix_has_several_recipes() -> None:
    Path("toy.yaml").write_text(RECIPE.replace("steps:", "matrix: {points: [5, 6]}\nsteps:"), encoding="utf-8")
    with pytest.raises(runner.UsageError, match="2 combinations"):
        runner.load("toy.yaml")
    assert [recipe.matrix for recipe in runner.load_all("toy.yaml")] == [{"points": 5}, {"points": 6}]


def test_a_lock_can_be_required() -> None:
    with pytest.raises(runner.UsageError) as caught:
        runner.load("toy.yaml", locked=True)
    assert caught.value.message == "toy.yaml has no lock: toy.lock is not there"


def test_validate_leaves_nothing_behind() -> None:
    checked = runner.validate("toy.yaml")
    assert ([recipe.name for recipe in checked.recipes], checked.warnings) == (["toy"], ())
    assert [path.name for path in Path().iterdir()] == ["toy.yaml"]


def test_validate_looks_at_the_model_unless_only_the_text_counts() -> None:
    text = RECIPE.replace("demo:tiny-llama", "./nowhere")
    Path("toy.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(runner.RecipeError) as caught:
        runner.validate("toy.yaml")
    assert [d.code for d in caught.value.diagnostics] == ["R430"]
    assert len(runner.validate("toy.yaml", text_only=True).recipes) == 1

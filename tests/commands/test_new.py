from __future__ import annotations

from pathlib import Path

import pytest

from runner.commands import new
from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.sites import Site
from runner.recipe import load
from tests.commands.conftest import Run


@pytest.mark.parametrize("goal", new.GOALS)
@pytest.mark.parametrize("model", ["demo:tiny-llama", "meta-llama/Llama-3.2-1B", "C: a 'strange' one", "yes", "# no"])
def test_what_it_writes_is_a_recipe(goal: str, model: str) -> None:
    text = new.starter(model, goal, new.recipe_name(model, goal), None)
    recipe = load.loads(text, "new.yaml", [])
    assert recipe.model.source == model
    assert recipe.description == new.GOALS[goal]


@pytest.mark.parametrize("goal", new.GOALS)
def test_it_validates_against_the_model(run: Run, goal: str) -> None:
    code, out, err = run("new", "demo:tiny-llama", "--goal", goal, "-o", "my.yaml")
    assert (code, err) == (0, "")
    assert (
        out
        == """\
wrote my.yaml
  runner plan my.yaml    shows what it would do and cost
  runner apply my.yaml   does it
"""
    )
    code, out, err = run("validate", "my.yaml")
    assert (code, err) == (0, "")
    assert out.startswith("my.yaml: ok, ")


def test_the_file_is_named_after_model_and_goal(run: Run, folder: Path) -> None:
    assert run("new", "org/Some.Model_7B")[0] == 0
    assert (folder / "some-model-7b-int4.yaml").exists()


def test_it_does_not_overwrite(run: Run, folder: Path) -> None:
    assert run("new", "org/model", "-o", "toy.yaml") == (
        2, "", "error: toy.yaml exists already\nhelp: --force overwrites it, -o FILE names another\n"
    )  # fmt: skip
    assert run("new", "org/model", "-o", "toy.yaml", "--force")[0] == 0
    assert "org/model" in (folder / "toy.yaml").read_text()


def test_it_prints(run: Run) -> None:
    code, out, _ = run("new", "org/model", "-o", "-")
    assert code == 0
    assert out.startswith("# yaml-language-server: $schema=recipe.schema.json\n")


def test_a_folder_that_is_not_there(run: Run) -> None:
    assert run("new", "org/model", "-o", "no/such/folder.yaml") == (
        2, "", "error: no/such/folder.yaml cannot be written: No such file or directory\nhelp: -o FILE names another\n"
    )  # fmt: skip


def test_sizes_fit_the_model(folder: Path) -> None:
    def linear(columns: int) -> Site:
        return Site(f"model.layers.0.a{columns}", f"model.layers.0.a{columns}.weight", None, False, 8, columns, 0)

    config = ModelConfig.of({"max_position_embeddings": 256})
    facts = CheckpointFacts("m", config, {}, "model.layers.", 1, (linear(96), linear(192)))
    text = new.starter("m", "int4", "m-int4", facts)
    assert "group_size: 32\n" in text
    assert "sequence_length: 256}" in text

"""`runner show`: each value with where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import DECEPTIVE
from runner.recipe import load, provenance
from runner.recipe.syntax import nodes, yaml_text
from runner.report import show as report
from tests.commands.conftest import Run

CHILD = """\
extends: toy.yaml
params: {points: 7}
steps:
  - id: before
    toy.score: {points: 3}
  - toy.shrink: {}
    before: shrink
    id: more
"""
SHOWN = """\
version: 1                      # toy.yaml:1
name: toy                       # toy.yaml:2
description: A toy.             # toy.yaml:3
params:
  points: 7                     # child.yaml:2
  fail: true                    # --set fail=true
model:
  source: demo:tiny-llama       # toy.yaml:5
seed: 0                         # default
steps:
  - toy.score:
      against: model            # default of toy.score
      points: 3.0               # child.yaml:5
      scale: auto               # default of toy.score
      gates: {}                 # default of toy.score
    id: before                  # child.yaml:4
  - toy.shrink:
      fail: false               # default of toy.shrink
    id: more                    # child.yaml:8
  - toy.shrink:
      fail: true                # toy.yaml:9, fail from --set fail=true
    id: shrink                  # toy.yaml:10
  - toy.score:
      against: model            # default of toy.score
      points: 7.0               # toy.yaml:12, points from child.yaml:2
      scale: auto               # default of toy.score
      gates:
        points:
          max_ratio_to: before  # toy.yaml:13
          value: 1.5            # toy.yaml:13
    id: after                   # toy.yaml:14
"""


@pytest.fixture(autouse=True)
def child(folder: Path) -> None:
    (folder / "child.yaml").write_text(CHILD, encoding="utf-8")


def test_every_value_says_where_it_comes_from(run: Run) -> None:
    assert run("show", "child.yaml", "--set", "fail=true") == (0, SHOWN, "")


def test_what_is_shown_is_the_recipe(run: Run) -> None:
    shown = yaml.safe_load(run("show", "child.yaml")[1])
    assert shown == load.load("child.yaml").document


def test_a_matrix_shows_each_combination(run: Run, folder: Path) -> None:
    (folder / "child.yaml").write_text(CHILD + "matrix: {points: [5, 6]}\n", encoding="utf-8")
    first, second = run("show", "child.yaml")[1].split("\n\n")
    assert "  points: 5                     # matrix, child.yaml:9\n" in first
    assert "      points: 6.0               # toy.yaml:12, points from matrix, child.yaml:9\n" in second


def test_json(run: Run) -> None:
    document = json.loads(run("show", "child.yaml", "--set", "fail=true", "--json")[1])
    assert document["recipe"] == load.load("child.yaml", ["fail=true"]).document
    found = {entry["name"]: entry for entry in document["origins"]}
    assert found['steps[2]."toy.shrink".fail'] == {
        "path": ["steps", 2, "toy.shrink", "fail"], "name": 'steps[2]."toy.shrink".fail', "from": "written",
        "file": "toy.yaml", "line": 9, "column": 24, "text": None, "reference": "${fail}",
        "params": {"fail": {
            "from": "set", "file": "toy.yaml", "line": 4, "column": 27, "text": "--set fail=true", "reference": None,
            "params": {},
        }},
    }  # fmt: skip
    assert (found["seed"]["from"], found["seed"]["text"]) == ("default", "default")
    assert document["parents"] == []


INTEGERS = st.integers(-(2**63) + 1, 2**63 - 1)  # as far as a recipe takes them
WRITABLE = st.text(max_size=12).filter(lambda value: DECEPTIVE.search(value) is None)  # a recipe refuses the rest
TEXTS = WRITABLE | st.sampled_from(["1", "1e5", "no", "a: b", "a #b", "- a", "null", "", "x:", "${a}"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(TEXTS.filter(bool), TEXTS | INTEGERS | st.floats(allow_nan=False, allow_infinity=False)))
def test_any_value_is_shown_as_yaml_reads_it_back(values: dict[str, object]) -> None:
    rows = [line for line, _ in report._rows({"values": values}, (), "")]
    assert nodes.plain(yaml_text.parse("\n".join(rows), "r.yaml")) == {"values": values}


def test_every_value_of_a_recipe_has_an_origin() -> None:
    recipe = load.load("child.yaml")
    found = provenance.trace(recipe)
    tree = yaml_text.parse(yaml_text.dump(recipe.document), "r.yaml")
    assert {path: nodes.find(tree, path) is not None for path in found} == dict.fromkeys(found, True)
    leaves = [path for path, node in nodes.walk(tree) if not node.entries and not node.items]
    assert sorted(map(str, found)) == sorted(map(str, leaves))
    assert all(origin.words() for origin in found.values())

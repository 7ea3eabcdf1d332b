from __future__ import annotations

import json

import pytest

from runner.recipe.schema import editor, load
from tests.commands.conftest import Run


def test_one_kind_whole(run: Run) -> None:
    code, out, err = run("steps", "toy.score")
    assert (code, err) == (0, "")
    assert (
        out
        == """\
toy.score
Gives points.

 takes    checkpoint
 makes    metrics
 metrics  points
 needs    pip (pip install 'runner[toys]')

parameters
  points  a number of at least 0  required
      How many.
  against  `model` or the id of an earlier step  default model
      What to compare with.
  scale  an integer of at least 1, or "auto"  default auto
      A factor.
  gates  metric → {max: x}, {min: x}, {max_ratio_to: step, value: x} or {min_ratio_to: step, value: x}  default {}
      Limits on the metrics of this step; a missed one stops what depends on it and ends the job
      with exit code 3, and all results remain.

example
  - toy.score: {points: 0}
"""
    )


def test_a_family(run: Run) -> None:
    assert run("steps", "toy") == (
        0, "toy.score   Gives points\ntoy.shrink  Copies weights\n\n`runner steps KIND` describes one\n", ""
    )  # fmt: skip


def test_the_list_has_every_kind(run: Run) -> None:
    listed = [line.split()[0] for line in run("steps")[1].splitlines() if line and line[0] not in " `"]
    assert listed == list(load.kinds())


@pytest.mark.parametrize("kind", load.kinds())
def test_every_kind_can_be_described(run: Run, kind: str) -> None:
    code, out, _ = run("steps", kind)
    assert code == 0
    for name in load.kind_schema(kind)["properties"]:
        assert f"\n  {name}  " in out


@pytest.mark.parametrize(("asked", "meant"), [("quantise.gptq", "quantize.gptq"), ("prun", "prune")])
def test_an_unknown_kind(run: Run, asked: str, meant: str) -> None:
    message = f"there is no kind of step `{asked}`; did you mean `{meant}`?"
    assert run("steps", asked) == (2, "", f"error: {message}\nhelp: `runner steps` lists every kind\n")


def test_the_schema_for_editors(run: Run) -> None:
    code, out, _ = run("schema")
    assert code == 0
    assert json.loads(out) == editor.bundled()


def test_the_schema_of_a_kind(run: Run) -> None:
    assert json.loads(run("schema", "toy.shrink")[1])["properties"]["fail"]["default"] is False


def test_the_schema_of_no_kind(run: Run) -> None:
    assert run("schema", "toy.nothing") == (
        2, "", "error: unknown step kind `toy.nothing`\nhelp: `runner steps` lists every kind\n"
    )  # fmt: skip

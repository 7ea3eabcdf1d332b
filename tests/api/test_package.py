"""`import runner`: light, lazy, typed names; `plan` and `search` are functions although packages are called so too."""

from __future__ import annotations

import subprocess
import sys

import pytest

import runner
from runner.api import plans


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_brings_nothing_of_ours_and_no_package() -> None:
    out = run(
        "import sys, runner; print(*sorted(m for m in sys.modules if m.split('.')[0] in ('runner', 'yaml', 'rich')))"
    )
    assert out == "runner runner.plan runner.search\n"


def test_no_name_imports_torch() -> None:
    out = run("import sys, runner\nfor name in runner.__all__: getattr(runner, name)\nprint('torch' in sys.modules)")
    assert out == "False\n"


def test_plan_is_the_function_after_every_kind_of_import() -> None:
    code = """
import runner
first = runner.plan
import runner.plan.resolve
from runner.plan import types, resolve
from runner import plan
import runner.api.plans
assert plan is first is runner.plan is runner.api.plans.plan
print(resolve.__name__)
"""
    assert run(code) == "runner.plan.resolve\n"
    assert runner.plan is plans.plan
    again = "import runner.search.archive, runner.api.searching, runner\nprint(runner.search.__module__)"
    assert run(again) == "runner.api.searching\n"


def test_all_names_are_there_and_listed() -> None:
    assert set(runner.__all__) <= set(dir(runner))
    assert all(getattr(runner, name).__doc__ for name in runner.__all__)
    with pytest.raises(AttributeError, match="module 'runner' has no attribute 'aply'"):
        _ = runner.aply  # type: ignore[attr-defined]


def test_type_checkers_see_the_names_that_are_there() -> None:
    """The names under TYPE_CHECKING, which give the types, are those that `__getattr__` knows."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(runner.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == runner._MODULES
    assert sorted(typed) == sorted(runner.__all__)


def test_a_step_left_out_is_named() -> None:
    """What a notebook's user forgets: a recipe has to be loaded, then planned."""
    with pytest.raises(TypeError) as caught:
        runner.plan("toy.yaml")  # type: ignore[arg-type]
    assert str(caught.value) == "plan() takes a recipe, as `runner.load(path)` returns it; got 'toy.yaml'"
    with pytest.raises(TypeError) as caught:
        runner.apply(runner.load("toy.yaml"))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "apply() takes a plan, as `runner.plan(recipe)` returns it; got <Recipe toy: before, shrink, after>"
    )

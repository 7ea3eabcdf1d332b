"""Recipes that change other recipes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RecipeError, Span
from runner.recipe.compose import merge
from runner.recipe.load import load
from runner.recipe.syntax.nodes import Node, plain

PARENT = """\
version: 1
name: parent
params: {bits: 4, model: demo:tiny-llama}
model: {source: "${model}", revision: main}
data:
  text: {source: demo:stdlib, sequence_length: 512, samples: 64}
steps:
  - evaluate.perplexity: {data: text}
    id: baseline
  - quantize.gptq: {data: text, bits: "${bits}", overrides: {"*.q_proj": {bits: 8}}}
    resources: {processes: 1}
  - evaluate.perplexity: {data: text, gates: {perplexity: {max: 20}}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parent.yaml").write_text(PARENT)
    return tmp_path


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def complaint_of(name: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(name)
    return caught.value.render()


def test_a_child_changes_its_parent_key_by_key() -> None:
    child = write(
        "child.yaml",
        """\
extends: parent.yaml
name: child
params: {bits: 3}
data: {text: {samples: 8}, other: {source: a.txt, sequence_length: 16}}
steps:
  - quantize.gptq: {group_size: 64, overrides: {}}
    resources: {processes: 1}
  - id: perplexity
    evaluate.divergence: {data: other}
  - prune.magnitude:
    from: model
""",
    )
    recipe = load(child)
    assert recipe.name == "child"
    assert recipe.params == {"bits": 3, "model": "demo:tiny-llama"}
    assert recipe.model.revision == "main"
    assert (recipe.data["text"].samples, recipe.data["text"].sequence_length) == (8, 512)
    assert [(step.id, step.kind) for step in recipe.steps] == [
        ("baseline", "evaluate.perplexity"),
        ("gptq", "quantize.gptq"),
        ("perplexity", "evaluate.divergence"),
        ("magnitude", "prune.magnitude"),
    ]
    gptq = recipe.steps[1]
    assert (gptq.params["bits"], gptq.params["group_size"], gptq.params["overrides"]) == (3, 64, {})
    assert gptq.resources == {"processes": 1}
    assert recipe.steps[2].params == {"data": "other", "against": "model", "gates": {}}


def test_a_step_of_the_parent_is_left_out_by_id() -> None:
    child = write("child.yaml", "extends: parent.yaml\nsteps:\n  - {id: gptq, when: false}\n")
    assert [step.id for step in load(child).steps] == ["baseline", "perplexity"]


def test_places_are_those_of_the_file_that_holds_the_value(folder: Path) -> None:
    recipe = load(write("sub/child.yaml", "extends: ../parent.yaml\nsteps:\n  - quantize.gptq: {group_size: 64}\n"))
    gptq = recipe.steps[1]
    assert recipe.step_span(gptq, ("group_size",)) == Span(
        "sub/child.yaml", 3, 33, 2, "  - quantize.gptq: {group_size: 64}"
    )
    overrides = recipe.step_span(gptq, ("overrides", "*.q_proj", "bits"))
    assert overrides is not None
    assert (overrides.file, overrides.line) == ("parent.yaml", 10)


def test_a_complaint_about_the_parent_names_the_parent() -> None:
    write("sub/child.yaml", "extends: ../parent.yaml\nparams: {bits: 5}\nsteps:\n  - quantize.gptq: {grid: best}\n")
    assert complaint_of("sub/child.yaml") == (
        'parent.yaml:10:39: error[R203]: `bits` must be one of 2, 3, 4, 8, "auto"; got 5 (from `${bits}`)\n'
        '   10 |   - quantize.gptq: {data: text, bits: "${bits}", overrides: {"*.q_proj": {bits: 8}}}\n'
        "      |                                       ^^^^^^^^^\n"
        "help: `runner steps quantize.gptq` lists every parameter\n\n"
        'sub/child.yaml:4:27: error[R203]: `grid` must be one of "minmax", "mse", "weighted_mse"; got "best"\n'
        "    4 |   - quantize.gptq: {grid: best}\n"
        "      |                           ^^^^\n"
        "help: `runner steps quantize.gptq` lists every parameter"
    )


def test_parents_have_parents() -> None:
    write("middle.yaml", "extends: parent.yaml\nname: middle\nparams: {bits: 8}\n")
    recipe = load(write("child.yaml", "extends: middle.yaml\nseed: 3\n"))
    assert (recipe.name, recipe.params["bits"], recipe.seed) == ("middle", 8, 3)


def test_the_standalone_recipe_extends_nothing() -> None:
    recipe = load(write("child.yaml", "extends: parent.yaml\n"))
    assert "extends" not in recipe.document


def test_recipes_in_a_circle() -> None:
    write("a.yaml", "name: a\nextends: sub/b.yaml\n")
    write("sub/b.yaml", "extends: ../c.yaml\n")
    write("c.yaml", "version: 1\n\nextends: a.yaml\n")
    assert complaint_of("a.yaml") == (
        "c.yaml:3:10: error[R121]: recipes extend one another in a circle: "
        "a.yaml:2:10 → sub/b.yaml:1:10 → c.yaml:3:10 → a.yaml\n"
        "    3 | extends: a.yaml\n"
        "      |          ^^^^^^\n"
        "help: remove one `extends`"
    )


def test_a_recipe_that_extends_itself() -> None:
    write("a.yaml", "extends: ./a.yaml\n")
    assert complaint_of("a.yaml") == (
        "a.yaml:1:10: error[R121]: recipes extend one another in a circle: a.yaml:1:10 → a.yaml\n"
        "    1 | extends: ./a.yaml\n"
        "      |          ^^^^^^^^\n"
        "help: remove one `extends`"
    )


def test_a_parent_that_is_not_there() -> None:
    write("a.yaml", "extends: parnt.yaml\n")
    assert complaint_of("a.yaml") == (
        "a.yaml:1:10: error[R120]: cannot read `parnt.yaml`: No such file or directory\n"
        "    1 | extends: parnt.yaml\n"
        "      |          ^^^^^^^^^^\n"
        "help: did you mean `parent.yaml`?"
    )


WHERE = (
    "help: write a path relative to this file, `pack:NAME/RECIPE`, "
    "`git+https://HOST/REPOSITORY@COMMIT-OR-TAG#PATH`, or a URL of https, s3, gs, hf or file"
)


@pytest.mark.parametrize("written", ['"${base}.yaml"', "4", "[a.yaml, b.yaml]", "", '" "'])
def test_what_names_no_recipe(written: str) -> None:
    write("a.yaml", f"extends: {written}\n")
    lines = complaint_of("a.yaml").splitlines()
    assert lines[0].endswith("error[R122]: `extends` names a recipe; this names none")
    assert lines[-1] == WHERE


@pytest.mark.parametrize(
    ("written", "message", "help"),
    [
        ("simplecache::file:///x", "`simplecache::file:///x` is no place that a recipe can be at", WHERE[6:]),
        ("git+ext::sh", "`git+ext::sh` is no place that a recipe can be at", WHERE[6:]),
        ("zip://a.zip", "`zip://a.zip` stands for another place", "write the URL of the recipe itself"),
        (
            "git@example.com:o/r.git",
            "`extends` names a repository in the form of scp",
            "write `git+ssh://git@example.com/o/r.git@COMMIT-OR-TAG#path/to/recipe.yaml`",
        ),
        (
            "https://example.com/r.git",
            "`https://example.com/r.git` is a repository, not a recipe",
            "write git+https://HOST/REPOSITORY@COMMIT-OR-TAG#path/to/recipe.yaml",
        ),
    ],
)
def test_what_is_no_place(written: str, message: str, help: str) -> None:
    write("a.yaml", f"extends: {written}\n")
    lines = complaint_of("a.yaml").splitlines()
    assert lines[0] == f"a.yaml:1:10: error[R122]: {message}"
    assert lines[-1] == f"help: {help}"


def test_recipes_that_never_end() -> None:
    for number in range(20):
        write(f"r{number}.yaml", f"extends: r{number + 1}.yaml\n")
    assert complaint_of("r0.yaml") == (
        "r15.yaml:1:10: error[R129]: more than 16 recipes extend one another, from r0.yaml:1:10 on\n"
        "    1 | extends: r16.yaml\n"
        "      |          ^^^^^^^^\n"
        "help: extend a recipe nearer to what is wanted"
    )


def test_a_parent_that_is_no_recipe() -> None:
    write("b.yaml", "- a\n")
    write("a.yaml", "extends: b.yaml\n")
    assert complaint_of("a.yaml") == (
        "b.yaml:1:1: error[R108]: a recipe is a mapping of keys to values; this is a list\n"
        "    1 | - a\n"
        "      | ^\n"
        "help: begin with `version: 1` and `name: ...`"
    )


def test_a_recipe_that_is_not_there() -> None:
    assert complaint_of("parent.yml") == (
        "error[R101]: cannot read `parent.yml`: No such file or directory\nhelp: did you mean `parent.yaml`?"
    )


def test_a_folder_is_no_recipe(folder: Path) -> None:
    (folder / "sub").mkdir()
    assert complaint_of("sub") == "error[R101]: cannot read `sub`: Is a directory"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_parent_cannot_make_us_wait(folder: Path) -> None:
    os.mkfifo(folder / "pipe.yaml")
    write("a.yaml", "extends: pipe.yaml\n")
    assert complaint_of("a.yaml") == (
        "a.yaml:1:10: error[R120]: cannot read `pipe.yaml`: it is no regular file\n"
        "    1 | extends: pipe.yaml\n"
        "      |          ^^^^^^^^^"
    )


def test_a_file_that_is_too_large(folder: Path) -> None:
    with open(folder / "a.yaml", "wb") as file:
        file.truncate(2**40)  # takes no room; reading all of it would
    assert complaint_of("a.yaml") == "error[R101]: `a.yaml` is larger than 1 MiB, which no recipe is"


def test_a_recipe_in_another_encoding(folder: Path) -> None:
    (folder / "a.yaml").write_bytes("version: 1\nname: \xe9t\xe9\n".encode("latin-1"))
    assert complaint_of("a.yaml") == (
        "a.yaml:2:7: error[R102]: the file is not UTF-8 text: byte 0xe9 at offset 17\n"
        "    2 | name: \ufffdt\ufffd\n"
        "      |       ^\n"
        "help: save the file with UTF-8 encoding"
    )


PLACE = Span("r.yaml", 1, 1)
KEYS = st.sampled_from(["version", "name", "params", "model", "data", "seed"])
INNER = st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3)


def tree(value: Any) -> Node:
    if isinstance(value, dict):
        return Node({key: tree(entry) for key, entry in value.items()}, PLACE, dict.fromkeys(value, PLACE))
    return Node(value, PLACE)


TREES = st.dictionaries(KEYS, INNER, max_size=4)


@given(TREES)
def test_merging_a_recipe_with_itself_changes_nothing(written: dict[str, Any]) -> None:
    assert plain(merge.merged(tree(written), tree(written))) == written


@given(TREES, TREES, TREES)
def test_merging_does_not_depend_on_grouping(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]) -> None:
    left = merge.merged(merge.merged(tree(a), tree(b)), tree(c))
    right = merge.merged(tree(a), merge.merged(tree(b), tree(c)))
    assert plain(left) == plain(right)


@given(TREES, TREES)
def test_what_the_child_says_counts(parent: dict[str, Any], child: dict[str, Any]) -> None:
    found = plain(merge.merged(tree(parent), tree(child)))
    assert set(found) == {*parent, *child}
    for key, entry in child.items():
        assert found[key].items() >= entry.items()

"""YAML text to values and back."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import DECEPTIVE, RecipeError
from runner.recipe.syntax import yaml_text as text
from runner.recipe.syntax.nodes import plain


def value(written: str) -> Any:
    return plain(text.parse(f"x: {written}\n", "r.yaml"))["x"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-4", 1e-4),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("1_000", "1_000"),
        ("2:4", "2:4"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("0b11", "0b11"),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("<<", "<<"),
        ('"4"', "4"),
        ("'true'", "true"),
        ("!!str 4", "4"),
        ("!!float 4", 4),
        ("!!map {a: 1}", {"a": 1}),
        ("[1, [2]]", [1, [2]]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written: str, read: Any) -> None:
    found = value(written)
    assert found == read
    assert type(found) is type(read)


def test_keys_are_text_as_written() -> None:
    assert plain(text.parse("on: 1\n4: 2\nnull: 3\n", "r.yaml")) == {"on": 1, "4": 2, "null": 3}


def test_anchors_and_aliases() -> None:
    assert plain(text.parse("a: &x {b: 1}\nc: *x\nd: [*x, *x]\n", "r.yaml")) == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": [{"b": 1}, {"b": 1}],
    }


def test_chained_aliases_cannot_nest_without_bound() -> None:
    deep = "[" * 20 + "{}" + "]" * 20
    lines = [f"a0: &a0 {deep.format('x')}"] + [f"a{i}: &a{i} {deep.format(f'*a{i - 1} ')}" for i in range(1, 12)]
    with pytest.raises(RecipeError) as caught:
        text.parse("\n".join(lines), "r.yaml")
    assert caught.value.render().startswith("r.yaml:1:1: error[R113]: aliases nest values more than 60 deep")


def test_line_ends_and_byte_order_mark() -> None:
    content = text.decode("\ufeffa: 1\r\nb: 2\r\n".encode(), "r.yaml")
    node = text.parse(content, "r.yaml")
    assert plain(node) == {"a": 1, "b": 2}
    assert (node.entries["b"].span.line, node.entries["b"].span.column, node.entries["b"].span.text) == (2, 4, "b: 2")


def test_places() -> None:
    node = text.parse("model: {source: a, revision: main}\nsteps:\n  - kind: {x: [1, 22]}\n", "r.yaml")
    steps = node.entries["steps"]
    assert (node.keys["model"].line, node.keys["model"].column, node.keys["model"].length) == (1, 1, 5)
    last = steps.items[0].entries["kind"].entries["x"].items[1].span
    assert (last.line, last.column, last.length) == (3, 19, 2)


def test_an_excerpt_is_cut_and_printable() -> None:
    assert text.excerpt("a\tb\x1b[31m", 0) == "a→b\ufffd[31m"
    assert len(text.excerpt("x" * 5000, 10)) == 111
    assert text.excerpt("x" * 5000, 400) == ""


TEXTS = st.text(max_size=12).filter(lambda text: DECEPTIVE.search(text) is None) | st.sampled_from(
    [
        "no",
        "1e-4",
        "4",
        "",
        "~",
        "null",
        "true",
        "0o17",
        ".inf",
        "1e999",
        "9" * 30,
        "a: b",
        "# c",
        "- d",
        "2:4",
        "${x}",
        "\t",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)


def typed(data: Any) -> Any:
    """Data in which 1, 1.0 and True differ."""
    if isinstance(data, dict):
        return {key: typed(entry) for key, entry in data.items()}
    if isinstance(data, list):
        return [typed(item) for item in data]
    return (type(data), repr(data))


@given(st.dictionaries(TEXTS, DATA, min_size=1, max_size=4))
def test_what_is_dumped_reads_back(document: dict[str, Any]) -> None:
    written = text.dump(document)
    read = plain(text.parse(written, "r.yaml"))
    assert typed(read) == typed(document)
    assert list(read) == list(document)
    assert text.dump(read) == written


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(RecipeError):
        assert isinstance(text.parse(text.decode(data, "r.yaml"), "r.yaml").value, dict)


@given(st.text(alphabet="ab:{}[]\"'&*!|>-#%@`,? \n\t0.e", max_size=40))
def test_any_text_is_read_or_refused(content: str) -> None:
    with contextlib.suppress(RecipeError):
        assert isinstance(text.parse(content, "r.yaml").value, dict)

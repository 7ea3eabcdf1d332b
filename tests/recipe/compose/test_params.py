"""References, their types, and `--set`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import Diagnostic, Span
from runner.recipe.compose import params
from runner.recipe.load import loads
from runner.recipe.syntax.nodes import Node, plain
from tests.recipe.cases import recipe

PLACE = Span("r.yaml", 1, 1)
NAMES = st.from_regex(params.NAME, fullmatch=True)
TEXTS = st.text(alphabet="ab${}\\ é", max_size=12)


def filled(text: str, values: dict[str, Any]) -> Any:
    complaints: list[Diagnostic] = []
    found = params.fill(text, PLACE, list(values), values.get, complaints.append)
    assert not complaints
    return found


@given(TEXTS)
def test_escaped_text_reads_back(text: str) -> None:
    assert filled(params.escape(text), {}) == text


@given(NAMES, st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS)
def test_a_reference_alone_keeps_the_type(name: str, value: Any) -> None:
    found = filled(f"${{{name}}}", {name: value})
    assert found == value
    assert type(found) is type(value)


@given(TEXTS, NAMES, TEXTS, TEXTS)
def test_a_reference_inside_text_is_filled_in_once(before: str, name: str, value: str, after: str) -> None:
    written = f"{params.escape(before)} ${{{name}}} {params.escape(after)}"
    assert filled(written, {name: value}) == f"{before} {value} {after}"


@given(TEXTS)
def test_any_text_is_filled_in_or_complained_about(text: str) -> None:
    complaints: list[Diagnostic] = []
    found = params.fill(text, PLACE, ["a"], {"a": 1}.get, complaints.append)
    assert (found is None) == bool(complaints)


def test_values_inside_text_are_written_as_yaml_writes_them() -> None:
    assert filled("${a} ${b} ${c}", {"a": True, "b": 4, "c": 0.5}) == "true 4 0.5"


def test_keys_and_params_themselves_are_left_alone() -> None:
    root = Node({"params": Node("${a}", PLACE), "${a}": Node("${a}", PLACE)}, PLACE)
    found = params.substitute(
        root, params.Params({"a": 1}, ("a",)), lambda path: path == ("params",), lambda complaint: None
    )
    assert plain(found) == {"params": "${a}", "${a}": 1}


@pytest.mark.parametrize(
    ("default", "given", "value"),
    [
        ("4", "8", 8),
        ("0.5", "1", 1.0),
        ("0.5", "1e-4", 1e-4),
        ("true", "false", False),
        ("text", "8", "8"),
        ("text", "${bits}", "${bits}"),
        ("text", "", ""),
        ("text", "a=b", "a=b"),
        ('"${whole}"', "3", 3),
        ('"x${whole}"', "3", "3"),
    ],
)
def test_the_default_gives_the_type_of_set(default: str, given: str, value: Any) -> None:
    text = recipe("- quantize.rtn: {}", also=f'params: {{whole: 1, x: {default}}}\ndescription: "is ${{x}}"')
    found = loads(text, "r.yaml", [f"x={given}"]).params["x"]
    assert found == value
    assert type(found) is type(value)


def test_the_last_set_of_a_name_counts_and_reaches_params_that_refer_to_it() -> None:
    text = recipe('- quantize.rtn: {bits: "${twice}"}', also='params: {bits: 4, twice: "${bits}"}')
    found = loads(text, "r.yaml", ["bits=2", "bits=3"])
    assert found.params == {"bits": 3, "twice": 3}
    assert found.steps[0].params["bits"] == 3


def test_text_that_looks_like_a_reference_survives_the_standalone_recipe() -> None:
    text = recipe("- quantize.rtn: {}", also='description: "costs $${price} and ${unit}"\nparams: {unit: "$${unit}"}')
    found = loads(text, "r.yaml")
    assert found.description == "costs ${price} and ${unit}"
    assert found.document["description"] == "costs $${price} and $${unit}"
    assert found.document["params"] == {"unit": "$${unit}"}

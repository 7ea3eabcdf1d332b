"""What is wrong with a `matrix` (R23x), as a user reads it."""

# ruff: noqa: E501 -- messages stand here as users see them

from __future__ import annotations

import pytest

from tests.recipe.cases import Case, complaint_of, recipe

PARAMS = "params: {bits: 4, size: 128}\n"
STEP = '- quantize.rtn: {bits: "${bits}", group_size: "${size}"}'


def of(written: str, step: str = STEP) -> str:
    return recipe(step, also=f"{PARAMS}matrix: {written}")


CASES = [
    Case(
        "unknown param",
        of("{bitz: [3, 4]}"),
        """
r.yaml:4:10: error[R230]: `matrix` names `bitz`, which is no param; did you mean `bits`?
    4 | matrix: {bitz: [3, 4]}
      |          ^^^^
help: params of this recipe: `bits` and `size`
""",
    ),
    Case(
        "unknown param in include",
        of("{bits: [3], include: [{group: 4}]}"),
        """
r.yaml:4:24: error[R230]: `matrix` names `group`, which is no param
    4 | matrix: {bits: [3], include: [{group: 4}]}
      |                                ^^^^^
help: params of this recipe: `bits` and `size`
""".replace("4:24", "4:32"),
    ),
    Case(
        "wrong type",
        of("{bits: [3, four]}"),
        """
r.yaml:4:20: error[R231]: `bits` must be an integer, as its default 4 is; got "four"
    4 | matrix: {bits: [3, four]}
      |                    ^^^^
""",
    ),
    Case(
        "a reference",
        of('{note: ["${bits}"]}').replace("bits: 4,", "bits: 4, note: x,"),
        """
r.yaml:4:17: error[R231]: `note` refers to a param in `matrix`, whose values are written out
    4 | matrix: {note: ["${bits}"]}
      |                 ^^^^^^^^^
help: use `$${` for the text `${`
""",
    ),
    Case(
        "nothing left",
        of("{bits: [3], exclude: [{bits: 3}]}"),
        """
r.yaml:4:1: error[R232]: `matrix` leaves no combination
    4 | matrix: {bits: [3], exclude: [{bits: 3}]}
      | ^^^^^^
help: `exclude` takes all of them away
""",
    ),
    Case(
        "nothing left of what is set",
        of("{bits: [3, 4], exclude: [{bits: 3}]}"),
        """
r.yaml:4:1: error[R232]: `matrix` leaves no combination
    4 | matrix: {bits: [3, 4], exclude: [{bits: 3}]}
      | ^^^^^^
help: `--set` fixes `bits`
""",
        sets=("bits=3",),
    ),
    Case(
        "a value twice",
        of("{bits: [3, 3]}"),
        """
r.yaml:4:20: error[R233]: `bits` has 3 twice in `matrix`
    4 | matrix: {bits: [3, 3]}
      |                    ^
help: remove one of them
""",
    ),
    Case(
        "a combination twice",
        of("{bits: [3, 4], include: [{bits: 3}]}"),
        """
r.yaml:4:26: error[R233]: `matrix` has the combination bits=3 twice
    4 | matrix: {bits: [3, 4], include: [{bits: 3}]}
      |                                  ^
help: remove one of them
""".replace("4:26", "4:34"),
    ),
    Case(
        "combinations that are the same job",
        of("{bits: [3, 4]}", "- quantize.rtn: {bits: 4}"),
        """
r.yaml:4:1: error[R233]: the combinations bits=3 and bits=4 come to the same job: nothing in the recipe depends on `bits`
    4 | matrix: {bits: [3, 4]}
      | ^^^^^^
help: refer to it with `${...}`, or take it out
""",
    ),
    Case(
        "exclude without a match",
        of("{bits: [3, 4], exclude: [{bits: 8}]}"),
        """
r.yaml:4:34: error[R234]: `exclude` of `matrix` matches no combination: bits=8
    4 | matrix: {bits: [3, 4], exclude: [{bits: 8}]}
      |                                  ^
help: its values must be in the lists of `matrix`
""",
    ),
    Case(
        "not a list",
        of("{bits: 3}"),
        """
r.yaml:4:16: error[R201]: `matrix.bits` must be a list of values of that param; got 3
    4 | matrix: {bits: 3}
      |                ^
""",
    ),
    Case(
        "empty",
        of("{}"),
        """
r.yaml:4:1: error[R207]: `matrix` must have at least 1 entry; it has 0
    4 | matrix: {}
      | ^^^^^^
help: write `matrix: {bits: [3, 4]}` with the names of params
""",
    ),
    Case(
        "a value that one combination has",
        of("{bits: [4, 12]}"),
        """
r.yaml:8:26: error[R204]: `bits` must be an integer from 2 to 8, or "auto"; got 12 (from `${bits}`) (in the combination bits=12)
    8 |   - quantize.rtn: {bits: "${bits}", group_size: "${size}"}
      |                          ^^^^^^^^^
help: `runner steps quantize.rtn` lists every parameter
""",
    ),
    Case(
        "what is wrong with every combination is reported once",
        of("{bits: [3, 4]}", '- quantize.rtn: {bits: "${bits}", group_sise: 64}'),
        """
r.yaml:8:37: error[R205]: unknown key `group_sise` of `quantize.rtn`; did you mean `group_size`?
    8 |   - quantize.rtn: {bits: "${bits}", group_sise: 64}
      |                                     ^^^^^^^^^^
help: `runner steps quantize.rtn` lists every parameter
""",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_message(case: Case) -> None:
    assert complaint_of(case.text, case.sets) == case.message.strip()


def test_too_many() -> None:
    values = ", ".join(map(str, range(20)))
    first, _, _, last = complaint_of(of(f"{{bits: [{values}], size: [{values}]}}")).splitlines()
    assert first == "r.yaml:4:1: error[R232]: `matrix` has 400 combinations; 256 are the most"
    assert last == "help: shorten its lists"


def test_too_many_by_include() -> None:
    values = ", ".join(f"{{bits: {number}}}" for number in range(300))
    assert complaint_of(of(f"{{include: [{values}]}}")).splitlines()[0] == (
        "r.yaml:4:1: error[R232]: `matrix` has 300 combinations; 256 are the most"
    )

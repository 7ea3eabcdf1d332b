"""What is wrong with params, `--set` and `when` (R22x), as a user reads it."""

# ruff: noqa: E501 -- messages stand here as users see them

from __future__ import annotations

import itertools

import pytest

from tests.recipe.cases import Case, complaint_of, recipe

CASES = [
    Case(
        "undefined param",
        recipe('- quantize.rtn: {bits: "${bitz}"}', also="params: {bits: 4}"),
        """
r.yaml:7:27: error[R220]: `${bitz}` is not a param; did you mean `bits`?
    7 |   - quantize.rtn: {bits: "${bitz}"}
      |                           ^^^^^^^
help: params of this recipe: `bits`
""",
    ),
    Case(
        "undefined param, none defined",
        recipe('- quantize.rtn: {bits: "${bits}"}'),
        """
r.yaml:6:27: error[R220]: `${bits}` is not a param
    6 |   - quantize.rtn: {bits: "${bits}"}
      |                           ^^^^^^^
help: this recipe has no `params`
""",
    ),
    Case(
        "malformed reference",
        recipe("- quantize.rtn: {}").replace("name: a", 'name: "a-${b c}"'),
        """
r.yaml:2:10: error[R221]: `${b c}` is malformed; a reference is `${name}`
    2 | name: "a-${b c}"
      |          ^^^^^^
help: use `$${` for the text `${`
""",
    ),
    Case(
        "unclosed reference",
        recipe("- quantize.rtn: {}").replace("name: a", 'name: "a-${b"'),
        """
r.yaml:2:10: error[R221]: `${` is never closed; a reference is `${name}`
    2 | name: "a-${b"
      |          ^^
help: use `$${` for the text `${`
""",
    ),
    Case(
        "params in a circle",
        recipe("- quantize.rtn: {}", also='params: {x: "${y}", y: "${z}", z: "1${x}"}'),
        """
r.yaml:3:13: error[R222]: params refer to one another in a circle: `x` → `y` → `z` → `x`
    3 | params: {x: "${y}", y: "${z}", z: "1${x}"}
      |             ^^^^^^
help: give one of them a value
""",
    ),
    Case(
        "param that is too long beside text",
        recipe('- quantize.rtn: {ignore: ["x${a}"]}', also=f"params: {{a: {'y' * 10_000}}}\n# lines"),
        """
r.yaml:8:29: error[R227]: with its references filled in this text has more than 10000 characters
    8 |   - quantize.rtn: {ignore: ["x${a}"]}
      |                             ^^^^^^^
help: write the text out, or refer to less
""",
    ),
    Case(
        "value of a param",
        recipe('- quantize.rtn: {bits: "${bits}"}', also="params: {bits: 4}"),
        """
r.yaml:7:26: error[R204]: `bits` must be an integer from 2 to 8, or "auto"; got 12 (from `${bits}`)
    7 |   - quantize.rtn: {bits: "${bits}"}
      |                          ^^^^^^^^^
help: `runner steps quantize.rtn` lists every parameter
""",
        sets=("bits=12",),
    ),
    Case(
        "set of an unknown param",
        recipe("- quantize.rtn: {}", also="params: {bits: 4}"),
        """
error[R223]: `--set bitz=3` names no param of the recipe; did you mean `bits`?
help: params of this recipe: `bits`
""",
        sets=("bitz=3",),
    ),
    Case(
        "set without params",
        recipe("- quantize.rtn: {}"),
        """
error[R223]: `--set bits=3` names no param of the recipe
help: this recipe has no `params`
""",
        sets=("bits=3",),
    ),
    Case(
        "set of the wrong type",
        recipe("- quantize.rtn: {}", also="params: {bits: 4, dense: true, rate: 0.5}"),
        """
r.yaml:3:16: error[R224]: `bits` must be an integer, as its default 4 is; got `--set bits=four`
    3 | params: {bits: 4, dense: true, rate: 0.5}
      |                ^

r.yaml:3:26: error[R224]: `dense` must be true or false, as its default true is; got `--set dense=1`
    3 | params: {bits: 4, dense: true, rate: 0.5}
      |                          ^^^^

r.yaml:3:38: error[R224]: `rate` must be a number, as its default 0.5 is; got `--set rate=fast`
    3 | params: {bits: 4, dense: true, rate: 0.5}
      |                                      ^^^
""",
        sets=("bits=four", "dense=1", "rate=fast"),
    ),
    Case(
        "set of a param that nothing refers to",
        recipe("- quantize.rtn: {}", also='params: {bits: 4, width: "${bits}"}'),
        """
r.yaml:3:10: error[R228]: `--set bits=3` changes nothing: the recipe nowhere refers to `${bits}`
    3 | params: {bits: 4, width: "${bits}"}
      |          ^^^^
help: leave it out, or write `${bits}` where the value belongs
""",
        ("bits=3",),
    ),
    Case(
        "set without a value",
        recipe("- quantize.rtn: {}", also="params: {bits: 4}"),
        """
error[R225]: `--set bits` is not of the form name=value
help: write `--set name=value`
""",
        sets=("bits",),
    ),
    Case(
        "when with an undefined param",
        recipe("- quantize.rtn: {}", "  when: bitz < 8", also="params: {bits: 4}"),
        """
r.yaml:8:11: error[R220]: `bitz` is not a param; did you mean `bits`?
    8 |     when: bitz < 8
      |           ^^^^
help: params of this recipe: `bits`
""",
    ),
    Case(
        "when that is no expression",
        recipe("- quantize.rtn: {}", "  when: bits <"),
        """
r.yaml:7:11: error[R226]: `when: bits <` cannot be evaluated: it is not an expression
    7 |     when: bits <
      |           ^^^^^^
help: write a comparison of params, such as `bits < 8 and not dense` or `method == "gptq"`
""",
    ),
    Case(
        "when that calls",
        recipe("- quantize.rtn: {}", "  when: \"__import__('os').system('ls')\""),
        """
r.yaml:7:11: error[R226]: `when: __import__('os').system('ls')` cannot be evaluated: `__import__('os').system('ls')` is more than it can hold
    7 |     when: "__import__('os').system('ls')"
      |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
help: write a comparison of params, such as `bits < 8 and not dense` or `method == "gptq"`
""",
    ),
    Case(
        "when of unlike values",
        recipe("- quantize.rtn: {}", '  when: bits == "four"', also="params: {bits: 4}"),
        """
r.yaml:8:11: error[R226]: `when: bits == "four"` cannot be evaluated: 4 and "four" cannot be compared by `==`
    8 |     when: bits == "four"
      |           ^^^^^^^^^^^^^^
help: write a comparison of params, such as `bits < 8 and not dense` or `method == "gptq"`
""",
    ),
    Case(
        "when that is a number",
        recipe("- quantize.rtn: {}", "  when: bits", also="params: {bits: 4}"),
        """
r.yaml:8:11: error[R226]: `when: bits` cannot be evaluated: it is 4, neither true nor false
    8 |     when: bits
      |           ^^^^
help: write a comparison of params, such as `bits < 8 and not dense` or `method == "gptq"`
""",
    ),
    Case(
        "when of a wrong type",
        recipe("- quantize.rtn: {}", "  when: 1"),
        """
r.yaml:7:11: error[R201]: `when` must be true, false or an expression over params; got 1
    7 |     when: 1
      |           ^
""",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_message(case: Case) -> None:
    assert complaint_of(case.text, case.sets) == case.message.strip("\n")


def test_texts_that_are_long_too_many_times() -> None:
    many = ", ".join(['"x${a}"'] * 200)
    lines = complaint_of(
        recipe(f"- quantize.rtn: {{ignore: [{many}]}}", also=f"params: {{a: {'y' * 9_999}}}")
    ).splitlines()
    assert lines[0] == (
        "r.yaml:7:29: error[R227]: with their references filled in the texts of the recipe have 2000000 characters; "
        "1048576 are the most"
    )
    assert lines[-1] == "help: refer to params that are shorter"


def test_params_that_double_one_another() -> None:
    """The billion laughs, by references instead of aliases."""
    names = ["a", *(f"p{number}" for number in range(60))]
    chain = [f'  {name}: "${{{before}}}${{{before}}}"' for before, name in itertools.pairwise(names)]
    lines = complaint_of(recipe("- quantize.rtn: {}", also="\n".join(["params:", "  a: haha", *chain]))).splitlines()
    assert (
        lines[0] == "r.yaml:16:8: error[R227]: with its references filled in this text has more than 10000 characters"
    )
    assert len([line for line in lines if "error[" in line]) == 1


def test_a_value_of_set_that_steers_a_terminal() -> None:
    assert complaint_of(recipe("- quantize.rtn: {}", also="params: {note: a}"), ("note=\x1b[2J",)) == (
        "r.yaml:3:16: error[R224]: `--set note=…` holds the character U+001B, which no recipe may\n"
        "    3 | params: {note: a}\n"
        "      |                ^\n"
        "help: remove it"
    )

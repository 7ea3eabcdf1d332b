"""What is wrong with the text itself (R1xx), as a user reads it."""

# ruff: noqa: E501 -- messages stand here as users see them

from __future__ import annotations

import pytest

from tests.recipe.cases import Case, complaint_of

CASES = [
    Case(
        "empty",
        "",
        """
r.yaml:1:1: error[R103]: the recipe is empty
help: `runner new` writes a recipe to start from
""",
    ),
    Case(
        "only a comment",
        "# nothing\n",
        """
r.yaml:1:1: error[R103]: the recipe is empty
    1 | # nothing
      | ^
help: `runner new` writes a recipe to start from
""",
    ),
    Case(
        "a list",
        "- a\n- b\n",
        """
r.yaml:1:1: error[R108]: a recipe is a mapping of keys to values; this is a list
    1 | - a
      | ^
help: begin with `version: 1` and `name: ...`
""",
    ),
    Case(
        "a single value",
        "hello\n",
        """
r.yaml:1:1: error[R108]: a recipe is a mapping of keys to values; this is a single value
    1 | hello
      | ^^^^^
help: begin with `version: 1` and `name: ...`
""",
    ),
    Case(
        "tab",
        "model:\n\tsource: m\n",
        """
r.yaml:2:1: error[R105]: a tab is used for indentation; YAML takes only spaces
    2 | →source: m
      | ^
help: replace each tab by two spaces
""",
    ),
    Case(
        "unclosed quote",
        'name: "abc\nversion: 1\n',
        """
r.yaml:1:7: error[R104]: not valid YAML: this `"` is never closed
    1 | name: "abc
      |       ^
""",
    ),
    Case(
        "unclosed bracket",
        "steps: [a, b\n",
        """
r.yaml:1:8: error[R104]: not valid YAML: this `[` is never closed
    1 | steps: [a, b
      |        ^
""",
    ),
    Case(
        "two documents",
        "version: 1\n---\nversion: 1\n",
        """
r.yaml:2:1: error[R106]: a recipe is one document; a second one begins here
    2 | ---
      | ^
help: remove the `---`
""",
    ),
    Case(
        "unquoted reference in braces",
        "model: {source: ${model}}\n",
        """
r.yaml:1:18: error[R104]: not valid YAML: expected ',' or '}', but got '{'
    1 | model: {source: ${model}}
      |                  ^
help: inside braces and brackets put references in quotes: `"${name}"`
""",
    ),
    Case(
        "colon in text",
        "name: a: b\n",
        """
r.yaml:1:8: error[R104]: not valid YAML: mapping values are not allowed here
    1 | name: a: b
      |        ^
help: check the indentation, and put text that holds `: ` in quotes
""",
    ),
    Case(
        "reserved character",
        "name: @a\n",
        """
r.yaml:1:7: error[R104]: not valid YAML: found character '@' that cannot start any token
    1 | name: @a
      |       ^
help: put text that begins with this character in quotes
""",
    ),
    Case(
        "control character",
        "name: a\x07b\n",
        """
r.yaml:1:8: error[R104]: the character U+0007 is not allowed in YAML
    1 | name: a�b
      |        ^
help: remove it
""",
    ),
    Case(
        "control character as an escape",
        'version: 1\nname: a\ndescription: "\\x1b[2Jdone"\n"\\u202ek": 1\n',
        """
r.yaml:3:14: error[R104]: the character U+001B is not allowed in a recipe, also not as an escape
    3 | description: "\\x1b[2Jdone"
      |              ^^^^^^^^^^^^^
help: remove it: it steers a terminal, or reorders what a reader sees

r.yaml:4:1: error[R104]: the character U+202E is not allowed in a recipe, also not as an escape
    4 | "\\u202ek": 1
      | ^^^^^^^^^
help: remove it: it steers a terminal, or reorders what a reader sees
""",
    ),
    Case(
        "half of a character",
        'name: "\\ud800"\n',
        """
r.yaml:1:7: error[R104]: the character U+D800 is not allowed in a recipe, also not as an escape
    1 | name: "\\ud800"
      |       ^^^^^^^^
help: remove it: it steers a terminal, or reorders what a reader sees
""",
    ),
    Case(
        "text that runs from right to left",
        "name: a\u202eb\n",
        """
r.yaml:1:7: error[R104]: the character U+202E is not allowed in a recipe, also not as an escape
    1 | name: a�b
      |       ^^^
help: remove it: it steers a terminal, or reorders what a reader sees
""",
    ),
    Case(
        "duplicate keys",
        "version: 1\nname: a\nversion: 1\nmodel: {source: a, source: b}\n",
        """
r.yaml:3:1: error[R107]: `version` is written twice; first at line 1
    3 | version: 1
      | ^^^^^^^
help: keep one of them

r.yaml:4:20: error[R107]: `source` is written twice; first at line 4
    4 | model: {source: a, source: b}
      |                    ^^^^^^
help: keep one of them
""",
    ),
    Case(
        "tag",
        "name: !!python/object/apply:os.system [ls]\n",
        """
r.yaml:1:7: error[R109]: the tag `!!python/object/apply:os.system` is not allowed; a recipe holds plain data
    1 | name: !!python/object/apply:os.system [ls]
      |       ^
help: leave the tag out
""",
    ),
    Case(
        "own tag",
        "name: !secret a\n",
        """
r.yaml:1:7: error[R109]: the tag `!secret` is not allowed; a recipe holds plain data
    1 | name: !secret a
      |       ^^^^^^^^^
help: leave the tag out
""",
    ),
    Case(
        "tag that lies",
        "seed: !!int four\n",
        """
r.yaml:1:7: error[R109]: `four` does not match its tag `!!int`
    1 | seed: !!int four
      |       ^^^^^^^^^^
help: leave the tag out
""",
    ),
    Case(
        "undefined alias",
        "name: *x\n",
        """
r.yaml:1:7: error[R104]: the alias `*x` has no anchor `&x` before it
    1 | name: *x
      |       ^
""",
    ),
    Case(
        "alias inside itself",
        "data: &d\n  x: *d\n",
        """
r.yaml:1:7: error[R110]: an alias refers to the value that it is part of
    1 | data: &d
      |       ^
""",
    ),
    Case(
        "billion laughs",
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
        """
r.yaml:1:1: error[R110]: aliases expand to more than 20000 values
    1 | a0: &a0 [x,x,x,x,x,x,x,x,x,x]
      | ^
help: write the values out, or use params
""",
    ),
    Case(
        "deep nesting",
        "name: " + "[" * 100 + "]" * 100 + "\n",
        """
r.yaml:1:66: error[R113]: values are nested more than 60 deep
    1 | name: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]…
      |                                                                  ^
""",
    ),
    Case(
        "infinity",
        "seed: .inf\n",
        """
r.yaml:1:7: error[R111]: `.inf` is not a finite number
    1 | seed: .inf
      |       ^^^^
help: put it in quotes if it is text
""",
    ),
    Case(
        "overflow",
        "seed: 1e999\n",
        """
r.yaml:1:7: error[R111]: `1e999` is too large a number
    1 | seed: 1e999
      |       ^^^^^
help: put it in quotes if it is text
""",
    ),
    Case(
        "huge integer",
        "seed: 123456789012345678901234567890\n",
        """
r.yaml:1:7: error[R111]: `123456789012345678901234567890` is too large: an integer goes up to 9223372036854775807
    1 | seed: 123456789012345678901234567890
      |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
help: put it in quotes if it is text
""",
    ),
    Case(
        "thousands of digits",
        "seed: " + "9" * 5000 + "\n",
        """
r.yaml:1:7: error[R111]: a number of 5000 digits is too long
    1 | seed: 9999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999…
      |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
help: put it in quotes if it is text
""",
    ),
    Case(
        "key not text",
        "? [a, b]\n: 1\n",
        """
r.yaml:1:3: error[R112]: a key must be text; this one is a list or a mapping
    1 | ? [a, b]
      |   ^
""",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_message(case: Case) -> None:
    assert complaint_of(case.text, case.sets) == case.message.strip("\n")

"""One mistake gives one complaint, at its place, with the remedy."""

from __future__ import annotations

import pytest

from runner.errors import RecipeError
from runner.recipe.load import loads

KEYS = (
    "it may have `version`, `name`, `description`, `extends`, `params`, `matrix`, `search`, `model`, `serve`, `seed`, "
    "`data`, `environments` and `steps`"
)
RECIPE = """\
version: 1
name: mine
model: {source: m}
data:
  train: {source: t, sequence_length: 8}
steps:
  - recover.lora:
      data: train
      rank: 4
    id: x
"""


@pytest.mark.parametrize(
    ("old", "new", "place", "message", "help"),
    [
        ("name: mine", "name mine", "2:1", "not valid YAML: `name mine` has no colon, and so is no key with a value",
         "write `name: mine`"),
        ("data:\n", "data\n", "4:1", "not valid YAML: `data` has no colon, and so is no key with a value",
         "write `data:`"),
        ("steps:", "teps:", "6:1", "unknown key `teps` of the recipe; did you mean `steps`?",
         KEYS),
        ("name: mine", "name: ${a}-${b}", "2:7",
         "2 references name params, and the recipe has no `params`; the first is this",
         "define them under `params:`, each with its default"),
        ("name: mine", "parms: {a: x, b: y}\nname: ${a}-${b}", "2:1",
         "unknown key `parms` of the recipe; did you mean `params`?",
         KEYS),
        ("lora:", "lora", "7:5", "not valid YAML: `recover.lora` has no colon, and so is no key with a value",
         "write `recover.lora:`"),
        ("rank: 4", "rank:4", "9:7",
         "not valid YAML: `rank:4` has no space after its colon, and so is no key with a value", "write `rank: 4`"),
        ("model: {", "model {", "3:1", "`model {source` is no key: a colon is missing after `model`",
         "write `model:` and its value after it"),
        ("{source: t", "{source t", "5:11", "`source t` is no key: a colon is missing after `source`",
         "write `source:` and its value after it"),
        ("rank: 4", "rank:\u00a04", "9:12",
         "not valid YAML: the character U+00A0 (no-break space) stands where YAML wants one of its own",
         "remove it, or write an ordinary space"),
        ("rank: 4", "\u3000rank: 4", "9:7", "the character U+3000 (ideographic space) is part of this key",
         "remove it, or write an ordinary space"),
        ("data: train", "data: train\u200b", "8:13", "the character U+200B (zero width space) is part of this value",
         "remove it, or write an ordinary space"),
        ("mine", "\u2018mine\u2019", "2:7", "the character U+2018 (left single quotation mark) is part of this value",
         'write `"`, or put the text in quotes'),
        ("rank: 4", "rank\uff1a 4", "9:11",
         "not valid YAML: the character U+FF1A (fullwidth colon) stands where YAML wants one of its own",
         "write `:`, or put the text in quotes"),
        ("      rank", "  rank", "9:3", "not valid YAML: `rank` begins in column 3, in which nothing above it does",
         "begin it in column 7 (as `data`) or 5 (as `recover.lora`) or 1 (as `steps`)"),
        ("      rank", "         rank", "9:10",
         "not valid YAML: `rank` is indented further than `data` above it, which has a value already",
         "begin both in the same column (7 or 10)"),
        ("      data: train\n      rank", "    data: train\n    rank", "8:5",
         "`data` and `rank` are parameters of `recover.lora`, and are not indented under it",
         "indent them further than `recover.lora`, or move them into the braces"),
        ("  train:", "train:", "5:1", "`train` is indented like `data`, which is empty",
         "indent it further than `data`, if it belongs there"),
        ("8}", "8", "5:10", "not valid YAML: this `{` is never closed", None),
        ("name: mine", "name: mine\ndescription: see: this", "3:14",
         "not valid YAML: a value that holds `: ` must be in quotes", 'write `"see: this"`'),
    ],
)  # fmt: skip
def test_one_mistake(old: str, new: str, place: str, message: str, help: str | None) -> None:
    assert loads(RECIPE, "r.yaml").name == "mine"
    with pytest.raises(RecipeError) as caught:
        loads(RECIPE.replace(old, new), "r.yaml")
    [found] = caught.value.diagnostics
    assert found.span is not None
    assert (f"{found.span.line}:{found.span.column}", found.message, found.help) == (place, message, help)


@pytest.mark.parametrize(
    "text", ["a long\u00a0text with spaces", '"no\u200bspaces"', "5\u2013axes", "\u2018a\u2019 and so on"]
)
def test_prose_and_quoted_text_may_hold_any_character(text: str) -> None:
    assert loads(RECIPE.replace("name: mine", f"name: mine\ndescription: {text}"), "r.yaml").description == text.strip(
        '"'
    )

"""The expressions of `when`."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.recipe.compose.when import Value, WhenError, evaluate

PARAMS: dict[str, Value] = {"bits": 4, "rate": 0.5, "dense": False, "method": "gptq"}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("true", True),
        ("dense", False),
        ("${dense}", False),
        ("not dense", True),
        ("bits == 4", True),
        ("${bits} != 4", False),
        ("2 < bits <= 4", True),
        ("bits < 4.5", True),
        ("rate > -1", True),
        ("method == 'gptq'", True),
        ('method >= "h"', False),
        ("dense == false", True),
        ("bits == 3 or bits == 4 and not dense", True),
        ("(bits == 4 or dense) and dense", False),
        (" bits == 4 ", True),
    ],
)
def test_what_it_can_hold(expression: str, value: bool) -> None:
    assert evaluate(expression, PARAMS) is value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("bits + 1 == 5", "`bits + 1` is more than it can hold"),
        ("method.upper() == 'GPTQ'", "`method.upper()` is more than it can hold"),
        ("bits in [3, 4]", "`bits in [3, 4]` is more than it can hold"),
        ("dense is false", "`dense is false` is more than it can hold"),
        ("[x for x in method]", "`[x for x in method]` is more than it can hold"),
        ("(lambda: true)()", "`(lambda: true)()` is more than it can hold"),
        ("true if dense else false", "`true if dense else false` is more than it can hold"),
        ("-bits < 0", "`-bits` is more than it can hold"),
        ("bits == None", "`None` is more than it can hold"),
        ("bits = 4", "it is not an expression"),
        ("bits == 4; dense", "it is not an expression"),
        ("", "it is not an expression"),
        ("\0", "it is not an expression"),
        ("(" * 300, "it is not an expression"),
        ("true" + " or true" * 100, "it is longer than 500 characters"),
        ("bits and dense", "`and` wants true or false; `bits` is 4"),
        ("dense or bits", "`or` wants true or false; `bits` is 4"),
        ("not method", '`not` wants true or false; `method` is "gptq"'),
        ("bits == '4'", '4 and "4" cannot be compared by `==`'),
        ("dense == 0", "false and 0 cannot be compared by `==`"),
        ("dense < true", "false and true cannot be compared by `<`"),
        ("method", 'it is "gptq", neither true nor false'),
        ("depth > 1", "`depth` is not a param"),
    ],
)
def test_what_it_refuses(expression: str, message: str) -> None:
    with pytest.raises(WhenError) as caught:
        evaluate(expression, PARAMS)
    assert str(caught.value) == message


@given(st.text(alphabet="bits denor()=<>!'\"\\41.-{}$[]:,", max_size=30))
def test_any_text_is_true_or_false_or_refused(expression: str) -> None:
    with contextlib.suppress(WhenError):
        assert isinstance(evaluate(expression, PARAMS), bool)

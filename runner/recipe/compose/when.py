"""The expressions of `when`: comparisons of params and literals, joined by and, or, not and parentheses."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from runner import wording

MAX_LENGTH = 500

_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_WORDS = {"true": True, "false": False, "True": True, "False": False}
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

Value = bool | int | float | str


class WhenError(ValueError):
    """An expression that cannot be evaluated; `name` is the undefined param, where that is the cause."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


def evaluate(expression: str, params: Mapping[str, Value]) -> bool:
    """Return whether `expression` is true for `params`.

    Names are params; `${name}` means the same. Raises WhenError.
    """
    if len(expression) > MAX_LENGTH:
        raise WhenError(f"it is longer than {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes and literals in text that may not be Python
            tree = ast.parse(_REFERENCE.sub(r"\1", expression).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise WhenError("it is not an expression") from None
    value = _value(tree.body, params)
    if not isinstance(value, bool):
        raise WhenError(f"it is {wording.show(value)}, neither true nor false")
    return value


def _value(node: ast.expr, params: Mapping[str, Value]) -> Value:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name):
            if name in params:
                return params[name]
            if name in _WORDS:
                return _WORDS[name]
            raise WhenError(f"`{name}` is not a param", name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if value is not True:
            return -value
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _truth(operand, params, "not")
        case ast.BoolOp(op=ast.And(), values=operands):
            # Every operand is evaluated, so that a mistake is reported whatever the others are.
            truths = [_truth(operand, params, "and") for operand in operands]
            return all(truths)
        case ast.BoolOp(values=operands):
            truths = [_truth(operand, params, "or") for operand in operands]
            return any(truths)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            return _compare(left, ops, rights, params)
    raise WhenError(f"`{ast.unparse(node)}` is more than it can hold")


def _truth(node: ast.expr, params: Mapping[str, Value], word: str) -> bool:
    value = _value(node, params)
    if not isinstance(value, bool):
        raise WhenError(f"`{word}` wants true or false; `{ast.unparse(node)}` is {wording.show(value)}")
    return value


def _compare(left: ast.expr, ops: list[ast.cmpop], rights: list[ast.expr], params: Mapping[str, Value]) -> bool:
    result = True
    for op, right in zip(ops, rights, strict=True):
        if type(op) not in _COMPARE:
            raise WhenError(f"`{ast.unparse(ast.Compare(left, [op], [right]))}` is more than it can hold")
        sign, function = _COMPARE[type(op)]
        first, second = _value(left, params), _value(right, params)
        ordered = sign not in ("==", "!=")
        if _family(first) != _family(second) or (ordered and isinstance(first, bool)):
            raise WhenError(f"{wording.show(first)} and {wording.show(second)} cannot be compared by `{sign}`")
        result = function(first, second) and result
        left = right
    return result


def _family(value: Value) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"

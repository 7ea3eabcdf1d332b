"""Replace what onnxruntime has one operator for: norms, residual sums before norms, rotary embeddings.

Patterns of norms are onnxscript's own. That of rotary embeddings computes nothing in advance: the tables of the
operator are the cosines and sines that the model's own code computes for the positions given, so that every kind of
scaling stays as it is and no table of all positions is stored.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnxscript.rewriter import pattern
from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

MICROSOFT = "com.microsoft"
_NORM = "SimplifiedLayerNormalization"


def fuse(model: ir.Model) -> None:
    """Replace norms, sums before them and rotary embeddings in a traced graph, whose values have types and shapes."""
    _declare_norm()
    fuse_rms_normalization(model)
    fuse_skip_rms_normalization(model)
    for kind in (_Rotary, _RotaryOfRows):
        rule = kind.rule()  # type: ignore[no-untyped-call]  # of onnxscript
        pattern.RewriteRuleSet([rule]).apply_to_model(model)


def _declare_norm() -> None:
    """Make the operator known to onnx's checker: onnxruntime has it in the domain of ONNX itself, where it is not."""
    if onnx.defs.has(_NORM):
        return
    schema, of = onnx.defs.OpSchema, onnx.defs.OpSchema.FormalParameter
    floats = ["tensor(float)", "tensor(float16)", "tensor(double)", "tensor(bfloat16)"]
    onnx.defs.register_schema(
        schema(
            _NORM, "", 1,
            inputs=[of("X", "T"), of("scale", "T")], outputs=[of("Y", "T")],
            type_constraints=[("T", floats, "")],
            attributes=[
                schema.Attribute("axis", schema.AttrType.INT, required=False),
                schema.Attribute("epsilon", schema.AttrType.FLOAT, required=False),
                schema.Attribute("stash_type", schema.AttrType.INT, required=False),
            ],
        )
    )  # fmt: skip


class _Rotary(pattern.RewriteRuleClassBase):
    """x · cos + rotate_half(x) · sin, x [b, h, n, d], whose tables repeat their first half → RotaryEmbedding.

    `x` may be a part of the columns of a head. The tables of the operator have a row for each token of the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tables: dict[tuple[ir.Value, ir.Value], list[Any]] = {}

    def pattern(self, op: Any, x: Any, cos: Any, sin: Any, start1: Any, end1: Any, start2: Any, end2: Any) -> Any:
        half = op.Slice(x, start1, end1, [3], [1])
        other = op.Neg(op.Slice(x, start2, end2, [3], [1]))
        return op.Add(op.Mul(x, cos), op.Mul(op.Concat(other, half, axis=-1), sin))

    def check(self, op: Any, *_: Any, **matched: Any) -> Any:
        result, x = pattern.MatchResult(), matched["x"]
        width = x.shape[-1] if x.shape is not None else None
        found = [_number(matched[name]) for name in ("start1", "end1", "start2")]
        if not isinstance(width, int) or found != [0, width // 2, width // 2]:
            return result.fail("other halves")
        if not all(_by_token(table) and _repeats(table) for table in (matched["cos"], matched["sin"])):
            return result.fail("other tables")
        return result

    def rewrite(self, op: Any, x: Any, cos: Any, sin: Any, **_: Any) -> Any:
        if (cos, sin) not in self._tables:
            self._tables[cos, sin] = self._of_tokens(op, cos, sin, x.shape[-1] // 2)
        return op.RotaryEmbedding(x, *self._tables[cos, sin], num_heads=x.shape[1], _domain=MICROSOFT)

    def _of_tokens(self, op: Any, cos: ir.Value, sin: ir.Value, half: int) -> list[Any]:
        """Return positions [b, n] that number the tokens of the batch, and tables [b · n, d / 2]."""
        first, second = (table.producer().inputs[0] for table in (cos, sin))  # type: ignore[union-attr]
        zero, one = (op.Constant(value_int=number) for number in (0, 1))
        sizes = op.Shape(first, start=0, end=2)
        numbers = op.Reshape(op.Range(zero, op.ReduceProd(sizes, keepdims=0), one), sizes)
        tables = []
        for table in (first, second):
            part = op.Slice(table, *(op.Constant(value_ints=[number]) for number in (0, half, 2)))
            tables.append(op.Reshape(part, op.Constant(value_ints=[-1, half])))
        return [numbers, *tables]


def _by_token(table: ir.Value) -> bool:
    """Whether a table is [b, 1, n, d], of [b, n, d]."""
    node = table.producer()
    return node is not None and node.op_type == "Unsqueeze" and _number(node.inputs[1]) == 1


def _repeats(table: ir.Value) -> bool:
    """Whether the second half of the columns of a table is the first again."""
    node = table.producer()
    while node is not None and node.op_type in ("Unsqueeze", "Mul", "Cast", "Cos", "Sin"):
        made = (value.producer() for value in node.inputs if value is not None)
        node = next((producer for producer in made if producer is not None), None)
    return node is not None and node.op_type == "Concat" and node.inputs[0] is node.inputs[1]


class _RotaryOfRows(pattern.RewriteRuleClassBase):
    """The same on heads that are taken apart before and put together after it: on the rows [b, n, h · d] themselves."""

    def pattern(self, op: Any, rows: Any, apart: Any, positions: Any, cos: Any, sin: Any, together: Any) -> Any:
        heads = op.Transpose(op.Reshape(rows, apart), perm=[0, 2, 1, 3])
        turned = op.RotaryEmbedding(
            heads, positions, cos, sin, _allow_other_attributes=True, _domain=MICROSOFT, _outputs=["turned"]
        )
        return op.Reshape(op.Transpose(turned, perm=[0, 2, 1, 3]), together)

    def check(self, op: Any, *_: Any, **matched: Any) -> Any:
        result, rows = pattern.MatchResult(), matched["rows"]
        heads = matched["turned"].producer().inputs[0].shape
        if rows.shape is None or heads is None or rows.shape[-1] != heads[1] * heads[3] or len(rows.shape) != 3:
            return result.fail("other rows")
        return result

    def rewrite(self, op: Any, rows: Any, positions: Any, cos: Any, sin: Any, turned: Any, **_: Any) -> Any:
        heads = turned.producer().inputs[0].shape[1]
        return op.RotaryEmbedding(rows, positions, cos, sin, num_heads=heads, _domain=MICROSOFT)


def _number(value: ir.Value | None) -> int | None:
    """Return the only integer of a constant; None where there is none."""
    held = ir.convenience.get_const_tensor(value) if value is not None else None
    return int(held.numpy().reshape(-1)[0]) if held is not None and held.size == 1 else None

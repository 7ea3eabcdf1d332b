"""Nodes and initializers that replace a placeholder of a traced graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

Attributes = Mapping[str, int | Sequence[int]]


class Nodes:
    """The nodes and initializers that replace one placeholder, named after its module."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def node(
        self, kind: str, inputs: Sequence[ir.Value], attributes: Attributes | None = None, domain: str = ""
    ) -> ir.Value:
        return self._add(kind, inputs, attributes or {}, domain, 1).outputs[0]

    def cast(self, value: ir.Value, held: ir.DataType, wanted: ir.DataType) -> ir.Value:
        """Return a value of the type `held` in the type `wanted`."""
        return value if held == wanted else self.node("Cast", [value], {"to": int(wanted)})

    def pair(
        self, kind: str, inputs: Sequence[ir.Value], attributes: Attributes, domain: str
    ) -> tuple[ir.Value, ir.Value]:
        """Add a node of two outputs."""
        first, second = self._add(kind, inputs, attributes, domain, 2).outputs
        return first, second

    def _add(self, kind: str, inputs: Sequence[ir.Value], attributes: Attributes, domain: str, count: int) -> ir.Node:
        name = f"{self.module}/{len(self.nodes)}.{kind}"
        made = ir.node(kind, inputs, attributes=attributes, domain=domain, name=name, num_outputs=count)
        self.nodes.append(made)
        return made

    def constant(self, value: ir.Value) -> ir.Value:
        self.constants.append(value)
        return value

    def integers(self, name: str, values: list[int]) -> ir.Value:
        """Add a constant in the graph itself."""
        return self.constant(held(ir.tensor(values, dtype=ir.DataType.INT64, name=f"{self.module}.{name}")))

    def number(self, name: str, value: float, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """Add the constant of a number in the graph itself."""
        return self.constant(held(ir.tensor(value, dtype=dtype, name=f"{self.module}.{name}")))


def token_scales(made: Nodes, x: ir.Value, full_range: float) -> ir.Value:
    """Return the scales [..., 1] of the tokens of float32 inputs: the largest of each over `full_range`; of zeros 1."""
    largest = made.node("ReduceMax", [made.node("Abs", [x]), made.integers("last", [-1])], {"keepdims": 1})
    scale = made.node("Div", [largest, made.number("range", full_range)])
    empty = made.node("Equal", [scale, made.number("zero", 0.0)])
    return made.node("Where", [empty, made.number("one", 1.0), scale])


def held(tensor: ir.TensorProtocol) -> ir.Value:
    """Return the initializer of a tensor that the graph itself holds."""
    shape = ir.Shape(tensor.shape.numpy())
    return ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)

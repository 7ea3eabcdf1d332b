"""Fill a traced graph with the weights of a checkpoint: each placeholder becomes the operators of its module.

One weight is in memory at a time: it is read, converted and written before the next one is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
import torch

from runner.errors import StepFailed
from runner.export import graph_layouts, integers, tables, tensorrt_weights
from runner.export.external_data import DataFile
from runner.export.nodes import Nodes, held, token_scales
from runner.export.tables import Calibration
from runner.export.tensorrt_inputs import TensorrtInputs
from runner.export.trace import DOMAIN, EMBEDDING
from runner.model.checkpoint import adapter_config
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.layerwise.linear import is_conv1d
from runner.model.layerwise.streamed_model import StreamedModel

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Options:
    """`target` is one of graph_layouts.TARGETS; `accuracy_level` that of MatMulNBits.

    `table_bits` is the number of bits of the token embedding and the head, 0 where they stay dense; `calibrated` is how
    the one that multiplies is rounded to them.
    """

    target: str
    dtype: torch.dtype
    accuracy_level: int
    table_bits: int = 0
    calibrated: Calibration | None = None


class Filler:
    """Replaces the placeholders of `graph` by operators with weights.

    `stored` counts the linear modules of the decoder layers by their scheme in the checkpoint, `widened` those whose
    integers are in wider fields.
    """

    def __init__(self, graph: ir.Graph, streamed: StreamedModel, data: DataFile, options: Options) -> None:
        self.graph, self.streamed, self.data, self.options = graph, streamed, data, options
        self.stored: Counter[str] = Counter()
        self.widened: Counter[str] = Counter()
        self._modules = dict(streamed.model.named_modules())
        self._tables: dict[str, ir.Value] = {}  # embedding matrices, by module
        self._packed_tables: dict[str, tuple[ir.Value, ir.Value]] = {}  # integers and scales, by module
        ends = (streamed.model.get_input_embeddings(), streamed.model.get_output_embeddings())
        self._ends = {name for name, m in self._modules.items() if any(m is end for end in ends)}
        embeddings = [name for name, m in self._modules.items() if isinstance(m, torch.nn.Embedding)]
        self._tied = {tied: name for name in embeddings for tied in streamed.tied_to(f"{name}.weight")}
        heads = [name for name, m in self._modules.items() if m is ends[1] and not streamed.is_packed(name)]
        self._multiplied = {self._tied.get(f"{name}.weight", name) for name in heads}
        self._rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}  # inputs of several modules, rounded once
        self._tensorrt_inputs = TensorrtInputs(options.dtype)
        self._zero_point: ir.Value | None = None
        self._adapted = set(streamed.adapter.modules()) if streamed.adapter is not None else set()

    def fill(self, progress: Callable[[int, int], None]) -> None:
        nodes = [node for node in self.graph if node.domain == DOMAIN]
        for done, node in enumerate(nodes, 1):
            module = node.attributes["module"].as_string()
            x = node.inputs[0]
            assert x is not None
            made = Nodes(module)
            out = self._embedding(made, module, x) if node.op_type == EMBEDDING else self._linear(made, module, x)
            self.graph.insert_before(node, made.nodes)
            for value in made.constants:
                self.graph.register_initializer(value)
            ir.convenience.replace_all_uses_with(node.outputs[0], out, replace_graph_outputs=True)
            self.graph.remove(node, safe=True)
            progress(done, len(nodes))

    def _embedding(self, made: Nodes, module: str, ids: ir.Value) -> ir.Value:
        """Gather rows. Those of integers by ONNX's own operators: browsers' onnxruntime has no GatherBlockQuantized."""
        if not (self.options.table_bits and module in self._ends):
            return made.node("Gather", [self._table(made, module), ids])
        weight, scales = self._packed_table(made, module)
        kind = self._kind
        rows = made.node("Cast", [made.node("Gather", [weight, ids])], {"to": int(kind)})  # [b, n, blocks, bytes]
        if self.options.table_bits == 4:
            rows = self._halves(made, rows, kind)
        centred = made.node("Sub", [rows, made.number("middle", 2 ** (self.options.table_bits - 1), kind)])
        scaled = made.node("Mul", [centred, made.node("Gather", [scales, ids])])
        return made.node("Reshape", [scaled, made.integers("row", [0, 0, -1])])

    def _halves(self, made: Nodes, rows: ir.Value, kind: ir.DataType) -> ir.Value:
        """Take the 4-bit integers of bytes, here floats, apart, the lower first: [b, n, blocks, columns]."""
        sixteen, last = made.number("sixteen", 16, kind), made.integers("last", [-1])
        high = made.node("Floor", [made.node("Div", [rows, sixteen])])
        low = made.node("Sub", [rows, made.node("Mul", [high, sixteen])])
        both = made.node("Concat", [made.node("Unsqueeze", [half, last]) for half in (low, high)], {"axis": -1})
        return made.node("Reshape", [both, made.integers("block", [0, 0, 0, -1])])

    def _table(self, made: Nodes, module: str) -> ir.Value:
        """Return the matrix [vocabulary, hidden] of an embedding, written once."""
        if module not in self._tables:
            weight = self.streamed.reader.read_weight(self._stored(f"{module}.weight"))
            self._tables[module] = made.constant(self.data.add(f"{module}.weight", self._convert(weight, module)))
        return self._tables[module]

    def _linear(self, made: Nodes, module: str, x: ir.Value) -> ir.Value:
        tied = self._tied.get(f"{module}.weight")
        if self.options.table_bits and module in self._ends and not self.streamed.is_packed(module):
            out = self._product_with_integers(made, tied or module, x)
        elif tied is not None:
            out = self._product_with_table(made, self._table(made, tied), x)
        elif self.streamed.is_packed(module):
            out = self._quantized(made, module, x)
        else:
            weight = self.streamed.reader.read_weight(self._stored(f"{module}.weight"))
            weight = self._convert(weight, module)
            weight = weight if is_conv1d(self._modules[module]) else weight.t().contiguous()
            out = made.node("MatMul", [x, made.constant(self.data.add(f"{module}.weight", weight))])
            self._note(module, "dense")
        bias = f"{module}.bias"
        if self._modules[module]._parameters.get("bias") is not None:
            tensor = self._convert(self.streamed.reader.read(self._stored(bias)), module)
            out = made.node("Add", [out, made.constant(self.data.add(bias, tensor))])
        return self._branch(made, module, x, out) if module in self._adapted else out

    def _packed_table(self, made: Nodes, module: str) -> tuple[ir.Value, ir.Value]:
        """Return integers [rows, blocks, bytes] and scales [rows, blocks, 1] of an embedding or head, written once."""
        if module not in self._packed_tables:
            weight = self._convert(self.streamed.reader.read_weight(self._stored(f"{module}.weight")), module)
            calibrated = self.options.calibrated if module in self._multiplied else None
            block = tables.rounded(weight, self.options.table_bits, calibrated)
            rows, blocks, _ = block.weight.shape
            weight_value = self._add(made, f"{module}.weight", block.weight)
            self._packed_tables[module] = (
                weight_value,
                self._scales(made, module, block.scales.reshape(rows, blocks, 1)),
            )
        return self._packed_tables[module]

    def _block(self, weight: ir.Value) -> int:
        """Return the columns of a block of such integers."""
        assert weight.shape is not None
        return int(weight.shape.numpy()[2]) * 8 // self.options.table_bits

    def _product_with_integers(self, made: Nodes, module: str, x: ir.Value) -> ir.Value:
        """Compute x·Wᵀ with the integers from which an embedding gathers rows.

        Inputs of 8-bit integers are rounded to 8 bits, too: else onnxruntime unpacks the entire table at every step.
        """
        weight, scales = self._packed_table(made, module)
        assert weight.shape is not None
        rows, blocks, _ = (int(size) for size in weight.shape.numpy())
        block = self._block(weight)
        flat = made.node("Reshape", [scales, made.integers("layout", [rows, blocks])])
        attributes = {
            "K": blocks * block, "N": rows, "bits": self.options.table_bits, "block_size": block,
            "accuracy_level": 4 if self.options.table_bits == 8 else self.options.accuracy_level,
        }  # fmt: skip
        return made.node("MatMulNBits", [x, weight, flat], attributes, MICROSOFT)

    def _product_with_table(self, made: Nodes, table: ir.Value, x: ir.Value) -> ir.Value:
        """Compute x·Wᵀ by Gemm, which takes W in the layout of the embedding."""
        assert table.shape is not None
        rows, width = (int(size) for size in table.shape.numpy())
        flat = made.node("Reshape", [x, made.integers("flat", [-1, width])])
        product = made.node("Gemm", [flat, table], {"transB": 1})
        leading = made.node("Shape", [x], {"start": 0, "end": -1})
        shape = made.node("Concat", [leading, made.integers("width", [rows])], {"axis": 0})
        return made.node("Reshape", [product, shape])

    def _quantized(self, made: Nodes, module: str, x: ir.Value) -> ir.Value:
        q = self.streamed.reader.read_quantized(self.streamed.stored_module(module))
        if q.groups is not None:
            raise StepFailed(
                f"the groups of `{module}` are not in the order of its columns (`g_idx`)",
                "quantize the dense model with `quantize.gptq`, whose `act_order` keeps groups in order",
            )
        scheme = self.streamed.scheme(module) or Scheme(q.numbers)
        how = graph_layouts.layout_for(self.options.target, scheme, q.in_features)
        if not isinstance(how, graph_layouts.GraphLayout):
            raise StepFailed(f"`{module}` {how[0]}", how[1])
        self._note(module, scheme.describe(), how.describe(scheme))
        if self.options.target == graph_layouts.TENSORRT:
            return self._tensorrt_product(made, module, x, q, how)
        if how.rounded:
            return self._integer_product(made, module, x, q)
        block = integers.blocks(q, how.field, how.block, self.options.dtype)
        inputs = [x, self._add(made, f"{module}.weight", block.weight)]
        inputs.append(self._scales(made, module, block.scales))
        if block.zero_points is not None:
            inputs.append(self._add(made, f"{module}.zero_points", block.zero_points))
        attributes = {
            "K": q.in_features, "N": q.out_features, "bits": block.bits, "block_size": block.size,
            "accuracy_level": self.options.accuracy_level,
        }  # fmt: skip
        return made.node("MatMulNBits", inputs, attributes, MICROSOFT)

    def _integer_product(self, made: Nodes, module: str, x: ir.Value, q: Quantized) -> ir.Value:
        """Multiply integers by integers: s_x · s_w · (x_q − 128)·W_q, all in float32 but the product.

        Inputs are unsigned, for which onnxruntime has the fast kernels on x86; 128 of them is zero.
        """
        if x not in self._rounded:
            self._rounded[x] = self._round_inputs(made, x)
        rounded, scale = self._rounded[x]
        parts = integers.signed(q, 8, torch.float32)
        weight = self._add(made, f"{module}.weight", parts.weight)
        product = made.node("MatMulInteger", [rounded, weight, self._middle(made)])
        product = made.node("Cast", [product], {"to": int(ir.DataType.FLOAT)})
        scales = made.node("Mul", [scale, self._add(made, f"{module}.scales", parts.scales)])
        out = made.node("Mul", [product, scales])
        return made.cast(out, ir.DataType.FLOAT, self._kind)

    def _round_inputs(self, made: Nodes, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return inputs as uint8 around 128 and their scales, one for each token, as the scheme of `w8a8` has them.

        A token of zeros gets a scale of 1.
        """
        x = made.cast(x, self._kind, ir.DataType.FLOAT)
        scale = token_scales(made, x, 127.5)
        scaled = made.node("Div", [x, scale])
        return made.node("QuantizeLinear", [scaled, made.number("step", 1.0), self._middle(made)]), scale

    def _middle(self, made: Nodes) -> ir.Value:
        """Return the constant 128, of which the graph has one."""
        if self._zero_point is None:
            tensor = ir.tensor(128, dtype=ir.DataType.UINT8, name=f"{made.module}.middle")
            self._zero_point = made.constant(held(tensor))
        return self._zero_point

    @property
    def _kind(self) -> ir.DataType:
        """The graph's float type."""
        return ir.DataType.FLOAT if self.options.dtype == torch.float32 else ir.DataType.FLOAT16

    def _tensorrt_product(
        self, made: Nodes, module: str, x: ir.Value, q: Quantized, how: graph_layouts.GraphLayout
    ) -> ir.Value:
        """Multiply a dequantized weight by inputs that are rounded as the checkpoint says."""
        scheme, dtype, scales = self.streamed.scheme(module), self.options.dtype, None
        if dtype == torch.float16:
            tensorrt_weights.require_float16(q, module)
        if how.rounded and scheme is not None and scheme.activations is not None:
            calibrated = q.input_scale if scheme.calibrated else None
            x, scales = self._tensorrt_inputs.rounded(made, x, scheme.activations, calibrated)
        if how.rounded or not q.numbers.is_integer:
            weight = tensorrt_weights.as_stored(made, self.data, module, q, dtype)
        else:
            weight = tensorrt_weights.as_integers(made, self.data, module, q, how, dtype)
        out = made.node("MatMul", [x, weight])
        if scales is None:
            return out
        wide = made.node("Mul", [made.cast(out, self._kind, ir.DataType.FLOAT), scales])
        return made.cast(wide, ir.DataType.FLOAT, self._kind)

    def _branch(self, made: Nodes, module: str, x: ir.Value, out: ir.Value) -> ir.Value:
        """Add the branch of a low-rank adapter: out + s·B(A(x))."""
        adapter = self.streamed.adapter
        assert adapter is not None
        a, b = (adapter.reader.read(f"{adapter_config.PREFIX}{module}.lora_{part}.weight") for part in "AB")
        scale = torch.tensor(adapter_config.scaling(adapter.config, module, a.shape[0]), dtype=self.options.dtype)
        inner = made.node("MatMul", [x, self._add(made, f"{module}.lora_A", self._convert(a, module).t())])
        inner = made.node("Mul", [inner, self._add(made, f"{module}.lora_scale", scale)])
        branch = made.node("MatMul", [inner, self._add(made, f"{module}.lora_B", self._convert(b, module).t())])
        return made.node("Add", [out, branch])

    def _note(self, module: str, stored: str, widened: str = "") -> None:
        if module.startswith(self.streamed.layers_name + "."):
            self.stored[stored] += 1
            self.widened.update([widened] if widened else [])

    def _add(self, made: Nodes, name: str, tensor: torch.Tensor) -> ir.Value:
        return made.constant(self.data.add(name, tensor))

    def _scales(self, made: Nodes, module: str, scales: torch.Tensor) -> ir.Value:
        """Store scales in float16 where that is exact, and widen them in the graph: onnxruntime does so as it loads."""
        half = scales.half()
        if self._kind != ir.DataType.FLOAT or not torch.equal(half.float(), scales.float()):
            return self._add(made, f"{module}.scales", self._convert(scales, module))
        stored = self._add(made, f"{module}.scales", half)
        return made.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})

    def _stored(self, parameter: str) -> str:
        return self.streamed.stored_name(parameter) or parameter

    def _convert(self, tensor: torch.Tensor, module: str) -> torch.Tensor:
        return self._checked(tensor.to(self.options.dtype), module)

    def _checked(self, tensor: torch.Tensor, module: str) -> torch.Tensor:
        """Return the tensor. StepFailed where float16 cannot hold a value (the reader checked that all are finite)."""
        if tensor.dtype == torch.float16 and tensor.numel() and not bool(tensor.isfinite().all()):
            raise StepFailed(
                f"`{module}` holds values above 65,504, which float16 cannot hold", "build it with `precision: fp32`"
            )
        return tensor

"""Export a checkpoint as an ExecuTorch program, whose products XNNPACK computes from the checkpoint's own integers.

The program has the interface of ExecuTorch's own language models, so that its runners for Android, iOS and C++ take it:
`forward(tokens [1, n], input_pos [1])` → logits, with the cache of keys and values in the program, and methods that
give the sizes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.errors import StepFailed
from runner.export import executorch_layouts, executorch_sharing, table_layouts, tables
from runner.export.decoder import Decoder, own_attention, shape_of
from runner.export.tables import Calibration
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.quantization.scheme import integers as scheme_of
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.streamed_model import StreamedModel
from runner.runtime.transformers import load

_DYNAMIC = "int8_asym_per_token"
_TABLE_GROUP = 32


class StaticDecoder(Decoder):
    """Token ids [1, n] and the position [1] of the first → logits [1, n, V]; the cache has `context` positions.

    All of it is read at every step: later positions are masked.
    """

    def __init__(self, model: Any, context: int) -> None:
        super().__init__(model)
        shape = shape_of(model.config)
        self.context = context
        for layer in range(shape.layers):
            for part in ("key", "value"):
                empty = torch.zeros(1, shape.kv_heads, context, shape.head_dim)
                self.register_buffer(f"{part}{layer}", empty)

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        positions = input_pos + torch.arange(tokens.shape[1])
        query, key = positions[:, None], torch.arange(self.context)[None, :]
        mask = self._masks((key <= query)[None, None], query, key, torch.float32)
        out = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions[None], use_cache=True,
            past_key_values=_StaticCache(self, positions),
        )  # fmt: skip
        logits: torch.Tensor = out.logits
        return logits


class _StaticCache:
    """What layers of transformers ask of a cache: it writes keys and values to their positions, and returns all."""

    def __init__(self, owner: nn.Module, positions: torch.Tensor) -> None:
        self._owner, self._positions = owner, positions

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, ...]:
        buffers = [self._owner.get_buffer(f"{part}{layer}") for part in ("key", "value")]
        for buffer, new in zip(buffers, (keys, values), strict=True):
            buffer.index_copy_(2, self._positions, new)
        return tuple(buffers)

    def get_seq_length(self, *_: Any) -> int:
        return 0


class Table(nn.Module):
    """An embedding of integers: `rows` int8 [V, H], or of 4 bits uint8 [V, H / 2].

    They are laid out as XNNPACK's weights, so that a tied head has the same bytes: of two values of 4 bits the second
    is the higher half of a byte. ExecuTorch's operator takes that half for the first; the two are exchanged again.
    """

    def __init__(self, q: Quantized, factor: float) -> None:
        super().__init__()
        halves = (q.codes[:, 1::2] << 4) | q.codes[:, 0::2]
        rows = halves if q.bits == 4 else (q.codes.to(torch.int16) - 128).to(torch.int8)
        self.bits, self.factor = q.bits, factor
        self.register_buffer("rows", rows)
        self.register_buffer("scales", q.scale.float() if q.strategy == "group" else q.scale.float().reshape(-1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        ops = torch.ops.quantized_decomposed
        if self.bits == 4:
            found = ops.embedding_4bit.dtype(self.rows, self.scales, None, -8, 7, ids, dtype=torch.float32)
            found = found.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            found = ops.embedding_byte.dtype(self.rows, self.scales, None, -128, 127, ids, dtype=torch.float32)
        rows: torch.Tensor = found * self.factor if self.factor != 1 else found
        return rows


def export(
    checkpoint: Path, context: int, embedding: str, metadata: dict[str, Any], calibrated: Calibration | None = None
) -> bytes:
    """Return the program of a checkpoint. `embedding` is one of `table_layouts.BITS`; `metadata`: method → value.

    `calibrated` is by what the table of integers that multiplies is rounded. A head that is tied to the embedding is
    stored once with it.

    Raises StepFailed where integers do not fit XNNPACK's layouts.
    """
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    streamed = load(checkpoint, "cpu", torch.float32, exact=True)
    with CheckpointReader(checkpoint) as reader:
        _fill(streamed, reader, table_layouts.BITS[embedding], calibrated)
    own_attention(streamed.model)
    decoder = StaticDecoder(streamed.model, context).eval()
    new = torch.export.Dim("new", min=1, max=context)
    example = (torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of torch and torchao
        program = torch.export.export(
            decoder, example, dynamic_shapes=({1: new}, {}), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,  # that 1 ≤ new is enough for them, torch does not prove
        )  # fmt: skip
        config = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
        edge = to_edge_transform_and_lower(
            program, partitioner=_partitioners(), compile_config=config, constant_methods=metadata
        )
        return executorch_sharing.shared(bytes(edge.to_executorch().buffer))


def _partitioners() -> list[Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )

    return [XnnpackDynamicallyQuantizedPartitioner(), XnnpackPartitioner()]


def _fill(
    streamed: StreamedModel, reader: CheckpointReader, table_bits: int, calibrated: Calibration | None = None
) -> None:
    """Give linear modules the checkpoint's integers, and the embedding and head integers of `table_bits` bits."""
    import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401  defines the operators of `Table`

    model = streamed.model
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    shared: Quantized | None = None  # of a head that is the embedding
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and streamed.is_packed(name):
            q = reader.read_quantized(streamed.stored_module(name))
            module.weight = nn.Parameter(_weight(q, streamed.scheme(name), name), requires_grad=False)
        elif table_bits and module is ends[1] and isinstance(module, nn.Linear):
            q = rounded_table(module.weight, table_bits, calibrated)
            shared = q if streamed.tied_to(f"{name}.weight") else None
            module.weight = nn.Parameter(_weight(q, None, name), requires_grad=False)
    if table_bits:
        table, factor = ends[0].weight, float(getattr(ends[0], "embed_scale", 1))
        model.set_input_embeddings(Table(rounded_table(table, table_bits) if shared is None else shared, factor))


def rounded_table(weight: torch.Tensor, bits: int, calibrated: Calibration | None = None) -> Quantized:
    """Round a table [V, H] on grids of least (weighed) squared error, those of 4 bits with scales in bfloat16."""
    size = _TABLE_GROUP if bits == 4 else weight.shape[1]
    strategy: Any = size if bits == 4 else "channel"
    levels = Levels(scheme_of(bits, strategy, True).weights, torch.bfloat16 if bits == 4 else torch.float32)
    return tables.quantized(weight.detach(), levels, calibrated)


def _weight(q: Quantized, scheme: Scheme | None, name: str) -> torch.Tensor:
    """Return integers as torchao's tensor of a product whose inputs are rounded as they come.

    StepFailed where XNNPACK cannot hold them. Integers of fewer bits lie within those of 4 or 8, with the same scales;
    a group may be stored as several.
    """
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import IntxUnpackedToInt8Tensor

    rows, columns = q.codes.shape
    size = executorch_layouts.group_of(scheme or Scheme(q.numbers), columns)
    if not isinstance(size, int) or q.groups is not None:
        wrong = size[0] if not isinstance(size, int) else "has groups that are not in the order of its columns"
        raise StepFailed(f"`{name}` {wrong}", "see `runner plan`")
    size = size or columns
    middle = 2 ** (q.bits - 1)
    integers = (q.codes.to(torch.int16) - middle).to(torch.int8)
    scales = _spread(q.scale.float(), q, (rows, columns // size))
    if q.bits <= 4 and not bool((scales.bfloat16().float() == scales).all()):
        raise StepFailed(
            f"the scales of `{name}` do not fit bfloat16, in which XNNPACK holds them",
            "quantize a model of bfloat16: its scales are stored in its type",
        )
    kind: torch.dtype = getattr(torch, "int4" if q.bits <= 4 else "int8")  # the former is in no stubs
    zeros = torch.zeros_like(scales, dtype=torch.int8)
    made: torch.Tensor = IntxUnpackedToInt8Tensor(integers, scales, zeros, kind, (1, size), torch.float32, _DYNAMIC)
    return made


def _spread(scales: torch.Tensor, q: Quantized, shape: Sequence[int]) -> torch.Tensor:
    """Repeat the scales [out, G], [out, 1] or [1, 1] for `shape` groups."""
    rows, groups = shape
    if q.strategy == "group" and groups != scales.shape[1]:
        scales = scales.repeat_interleave(groups // scales.shape[1], dim=1)
    return scales.expand(rows, groups).contiguous()

"""Trace the structure of a model as an ONNX graph, without its weights.

torch.export runs the transformers model on a few example tokens. Linear modules and embeddings, which hold nearly all
bytes of a checkpoint, become placeholder nodes of the domain `runner` that name their module; norms, rotary tables and
other small tensors have their values.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from runner.export import fusion
from runner.export.decoder import Decoder, own_attention, shape_of
from runner.export.fused_attention import FusedDecoder
from runner.model.layerwise.streamed_model import StreamedModel

DOMAIN = "runner"  # of the placeholders
LINEAR, EMBEDDING = "Linear", "Embedding"


def trace(streamed: StreamedModel, opset: int, *, fused: bool = False) -> ir.Model:
    """Return a model's graph; weights are nodes `Linear` and `Embedding` of DOMAIN, with the attribute `module`.

    With `fused` it has onnxruntime's operators for attention, norms and rotary embeddings.
    """
    shape = shape_of(streamed.config)
    if fused:
        decoder: Decoder = FusedDecoder(streamed.model)
    else:
        own_attention(streamed.model)
        decoder = Decoder(streamed.model)
    _prepare(streamed)
    batch, new, past = 2, 3, 5  # example sizes: all different, and none 0 or 1
    keys = torch.zeros(batch, shape.kv_heads, past, shape.head_dim, dtype=streamed.dtype)
    ids, positions = (torch.ones(batch, new, dtype=torch.int64) for _ in range(2))  # one tensor would be one input
    example = (ids, torch.ones(batch, past + new, dtype=torch.int64), positions, [keys.clone() for _ in shape.past])
    any_ = torch.export.Dim.DYNAMIC
    sizes = ({0: any_, 1: any_}, {0: any_, 1: any_}, {0: any_, 1: any_}, [{0: any_, 2: any_} for _ in shape.past])
    with torch.no_grad(), _placeholders(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.export.export(decoder, example, dynamic_shapes=sizes, strict=False)
        exported = torch.onnx.export(
            program,
            input_names=["input_ids", "attention_mask", "position_ids", *shape.past],
            output_names=["logits", *shape.present],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    if fused:
        fusion.fuse(exported.model)
    return exported.model


def _prepare(streamed: StreamedModel) -> None:
    """Load everything but the weights of linear modules and embeddings, which become empty."""
    for name, module in streamed.model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            _empty(streamed, name, module)
        else:
            streamed.load_module(name)


def _empty(streamed: StreamedModel, name: str, module: Any) -> None:
    module.placeholder = name
    if not isinstance(module, nn.Embedding):
        module.width = int(module.weight.shape[1 if isinstance(module, Conv1D) else 0])
    for key in list(module._parameters):
        if module._parameters[key] is not None:
            module._parameters[key] = nn.Parameter(torch.empty(0, dtype=streamed.dtype), requires_grad=False)
    if module._buffers:  # Gemma scales its embeddings
        module.padding_idx = None  # or the model's own initializer would clear that row of the empty weight
        streamed.load_module(name)


@contextlib.contextmanager
def _placeholders() -> Iterator[None]:
    """Replace the forward of linear modules and embeddings by placeholder nodes while a model is traced."""
    classes: tuple[Any, ...] = (nn.Linear, Conv1D, nn.Embedding)
    originals = [cls.forward for cls in classes]

    def linear(self: Any, x: torch.Tensor) -> torch.Tensor:
        return _node(LINEAR, x, self.placeholder, x.dtype, (*x.shape[:-1], self.width))

    def embedding(self: Any, ids: torch.Tensor) -> torch.Tensor:
        return _node(EMBEDDING, ids, self.placeholder, self.weight.dtype, (*ids.shape, self.embedding_dim))

    try:
        for cls, placeholder in zip(classes, (linear, linear, embedding), strict=True):
            cls.forward = placeholder
        yield
    finally:
        for cls, forward in zip(classes, originals, strict=True):
            cls.forward = forward


def _node(kind: str, x: torch.Tensor, module: str, dtype: torch.dtype, shape: tuple[Any, ...]) -> torch.Tensor:
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{kind}", [x], {"module": module}, dtype=dtype, shape=shape, version=1)

"""Embeddings and heads as integers, in graphs that onnxruntime runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import Diagnostic
from runner.export import table_layouts, tables
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.quantization.scheme import integers
from tests.export.exported import build, packed, pair, prompts
from tests.tiny import save

ONE: dict[str, Any] = {"num_hidden_layers": 1, "max_position_embeddings": 128}


def dequantized(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack a rounded table by the definition of the layout, in float64."""
    block = tables.rounded(weight, bits)
    fields = block.weight if bits == 8 else torch.stack([block.weight & 15, block.weight >> 4], -1).flatten(2)
    rows, columns = weight.shape
    integers = fields.reshape(rows, columns // block.size, block.size).double() - 2 ** (bits - 1)
    product: torch.Tensor = integers * block.scales.double().reshape(rows, -1, 1)
    return product.reshape(rows, columns)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.007), (4, 0.1)])
def test_rounding(bits: int, error: float) -> None:
    weight = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    assert ((dequantized(weight, bits) - weight).norm() / weight.norm()) < error


@pytest.mark.parametrize(("columns", "bits", "size"), [
    (256, 8, 128), (96, 8, 32), (576, 8, 64), (256, 4, 32), (48, 4, 16), (40, 4, None), (24, 8, None),
])  # fmt: skip
def test_block_sizes(columns: int, bits: int, size: int | None) -> None:
    assert table_layouts.block_size(columns, bits) == size


@pytest.mark.parametrize(("name", "bits"), [("llama_tied", 8), pytest.param("llama", 4, marks=pytest.mark.nightly)])
def test_the_graph_computes_with_the_rounded_tables(name: str, bits: int, tmp_path: Path) -> None:
    """A checkpoint whose embedding and head are the rounded ones gives the same logits."""
    source = save(tmp_path / "model", name, **ONE)
    engine = build(tmp_path, source, embedding=f"int{bits}")
    path = source / "model.safetensors"
    tensors = load_file(path)
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        if tensor in tensors:
            tensors[tensor] = dequantized(tensors[tensor].float(), bits).float()
    save_file(tensors, path, metadata={"format": "pt"})
    ours, theirs = pair(engine, source)
    ids = prompts(2, 20)
    wanted = theirs.prefill(ids)
    gap = np.abs(ours.prefill(ids) - wanted)
    if bits == 8:  # the inputs of its product are rounded, too
        assert gap.mean() < 0.01 * np.abs(wanted).mean()
    else:
        assert gap.max() < 1e-4
    graph = onnx.load(engine / "onnx/model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert (kinds.count("GatherBlockQuantized"), kinds.count("MatMulNBits")) == (0, 1), "browsers have no such gather"
    stored = [item.name for item in graph.initializer if "embed_tokens" in item.name or "lm_head" in item.name]
    assert ("lm_head.weight" in stored) == (name == "llama")


@pytest.mark.nightly
def test_scales_take_two_bytes_where_that_is_exact(tmp_path: Path) -> None:
    """The graph widens them, and computes what the checkpoint does; those that float16 cannot hold stay."""
    source = packed(tmp_path / "model", integers(4, 32, True), num_hidden_layers=1)
    path = source / "model.safetensors"
    tensors = load_file(path)
    exact = {name: scale.half() for name, scale in tensors.items() if name.endswith("weight_scale")}
    wide = "model.layers.0.mlp.down_proj.weight_scale"
    fine = {wide: exact[wide].float() * 1.0001}
    save_file({**tensors, **exact, **fine}, path, metadata={"format": "pt"})
    engine = build(tmp_path, source)
    graph = onnx.load(engine / "onnx/model.onnx", load_external_data=False).graph
    kinds = {item.name: item.data_type for item in graph.initializer if item.name.endswith(".scales")}
    assert kinds.pop("model.layers.0.mlp.down_proj.scales") == onnx.TensorProto.FLOAT
    assert len(kinds) == 6
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}
    ours, theirs = pair(engine, source)
    ids = prompts(1, 12)
    assert np.abs(ours.prefill(ids) - theirs.prefill(ids)).max() < 1e-5


def test_refusals(tmp_path: Path) -> None:
    found = facts(save(tmp_path / "model", "llama_tied", hidden_size=24, num_attention_heads=2), "model")
    path = ("embedding",)
    assert table_layouts.refuse(found, "onnxruntime", "dense") == []
    assert table_layouts.refuse(found, "onnxruntime", "int8") == [Diagnostic(
        "R661", "`model.embed_tokens.weight` has 24 columns; tables of integers have blocks of 16 to 128",
        "leave `embedding` out", path=path,
    )]  # fmt: skip
    assert table_layouts.refuse(found, "tensorrt", "int4") == [Diagnostic(
        "R661", "`embedding` is int4; TensorRT unpacks a table of integers from which rows are gathered",
        "leave it out, or use `target: onnxruntime`", path=path,
    )]  # fmt: skip

"""Decoder layers and linears found from names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.contracts.facts import CheckpointFacts
from runner.errors import RecipeError
from runner.model.architecture import decoder_layers, inspect
from runner.model.checkpoint import headers
from tests.model.checkpoints import LLAMA, Shapes, llama_shapes, write

REMEDY = "the checkpoint is incomplete or was edited; download it again"


def facts(folder: Path, shapes: Shapes, config: Mapping[str, Any] = LLAMA) -> CheckpointFacts:
    found = inspect.facts(write(folder, shapes, config), "m")
    wrong = decoder_layers.complaints(found.config.raw, found.tensors, "m")
    if wrong:
        raise RecipeError(wrong)
    return found


def messages(folder: Path, shapes: Shapes, config: Mapping[str, Any] = LLAMA) -> list[tuple[str, str]]:
    with pytest.raises(RecipeError) as caught:
        facts(folder, shapes, config)
    return [(d.code, d.message) for d in caught.value.diagnostics]


def test_a_tensor_missing_from_one_layer(tmp_path: Path) -> None:
    shapes = llama_shapes()
    del shapes["model.layers.2.self_attn.q_proj.weight"]
    assert messages(tmp_path, shapes) == [
        ("R446", "layer 2 has no `model.layers.2.self_attn.q_proj.weight`; the other 3 layers have it")
    ]


def test_a_tensor_missing_from_one_of_two_layers(tmp_path: Path) -> None:
    shapes = llama_shapes(2)
    del shapes["model.layers.1.mlp.up_proj.weight"]
    assert messages(tmp_path, shapes, LLAMA | {"num_hidden_layers": 2}) == [
        ("R446", "layer 1 has no `model.layers.1.mlp.up_proj.weight`; the other layer has it")
    ]


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    shapes = llama_shapes() | {"model.layers.3.mlp.down_proj.weight": ("BF16", [8, 12])}
    assert messages(tmp_path, shapes) == [
        ("R446", "`model.layers.3.mlp.down_proj.weight` has the shape [8, 12]; in 3 of 4 layers it is [8, 16]")
    ]


def test_a_layer_missing_whole(tmp_path: Path) -> None:
    shapes = {name: s for name, s in llama_shapes().items() if not name.startswith("model.layers.1.")}
    assert messages(tmp_path, shapes) == [("R446", "`m` lacks layer 1: its tensors `model.layers.N.` go from 0 to 3")]


def test_alternating_layers_are_legitimate(tmp_path: Path) -> None:
    shapes = llama_shapes()
    for index in (1, 3):
        shapes[f"model.layers.{index}.self_attn.q_proj.weight"] = ("BF16", [16, 8])
        del shapes[f"model.layers.{index}.self_attn.v_proj.weight"]
    assert facts(tmp_path, shapes).layer_count == 4


def test_layer_types_tell_layers_apart(tmp_path: Path) -> None:
    shapes = llama_shapes()
    shapes["model.layers.3.self_attn.q_proj.weight"] = ("BF16", [16, 8])
    del shapes["model.layers.3.self_attn.v_proj.weight"]
    types = ["sliding_attention"] * 3 + ["full_attention"]
    assert facts(tmp_path, shapes, LLAMA | {"layer_types": types}).layer_count == 4


def test_layers_that_share_keys_and_values(tmp_path: Path) -> None:
    shapes = llama_shapes()
    del shapes["model.layers.3.self_attn.k_proj.weight"]
    assert facts(tmp_path, shapes, LLAMA | {"num_kv_shared_layers": 1}).layer_count == 4


def test_no_numbered_tensors(tmp_path: Path) -> None:
    assert messages(tmp_path, {"embed.weight": ("BF16", [32, 8]), "out.weight": ("BF16", [32, 8])}) == [
        (
            "R444",
            (
                "`m` has no decoder layers: none of its 2 tensors has a numbered name such as "
                "`model.layers.0.self_attn.q_proj.weight`"
            ),
        )
    ]


def test_layers_without_linears(tmp_path: Path) -> None:
    assert messages(tmp_path, {f"model.layers.{i}.conv.weight": ("BF16", [8, 1, 4]) for i in range(4)}) == [
        (
            "R447",
            (
                "the numbered layers of `m` hold no linear weights: none of its 4 tensors, such as "
                "`model.layers.0.conv.weight`, is a 2-D `.weight`"
            ),
        )
    ]


def test_a_list_inside_a_layer_is_not_the_layers(tmp_path: Path) -> None:
    shapes = llama_shapes(2)
    for i in range(2):
        for j in range(5):
            shapes[f"model.layers.{i}.adapters.{j}.weight"] = ("BF16", [8, 8])
    found = facts(tmp_path, shapes, LLAMA | {"num_hidden_layers": 2})
    assert (found.layers_prefix, found.layer_count) == ("model.layers.", 2)


def test_conv1d_keeps_its_weight_transposed(tmp_path: Path) -> None:
    shapes: dict[str, tuple[str, list[int]]] = {"wte.weight": ("F32", [32, 8])}
    for i in range(2):
        shapes[f"h.{i}.attn.c_attn.weight"] = ("F32", [8, 24])
        shapes[f"h.{i}.attn.bias"] = ("F32", [1, 1, 4, 4])
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_embd": 8, "vocab_size": 32}
    found = facts(tmp_path, shapes, config)
    linear = found.sites[0]
    assert (found.layers_prefix, linear.name) == ("h.", "h.0.attn.c_attn")
    assert (linear.columns, linear.rows, linear.transposed) == (8, 24, True)


def test_packed_linears(tmp_path: Path) -> None:
    """compressed-tensors says the shape beside the weight; GPTQ's follows from the bits."""
    weights = {"type": "int", "num_bits": 4, "strategy": "channel", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    mark = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    shapes = packed("weight_packed", [8, 3], "weight_scale", [8, 1], shape=True)
    stored = write(tmp_path / "ct", shapes, LLAMA | {"quantization_config": mark})
    path = stored / "model.safetensors"
    content = bytearray(path.read_bytes())
    for header in headers.read_headers(stored).values():
        if header.name.endswith(".weight_shape"):
            content[header.begin : header.end] = (8).to_bytes(8, "little") + (20).to_bytes(8, "little")
    path.write_bytes(content)
    linear = inspect.facts(stored, "m").sites[0]
    assert (linear.name, linear.rows, linear.columns) == ("model.layers.0.q", 8, 20)
    theirs = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    config = LLAMA | {"quantization_config": theirs}
    found = facts(tmp_path / "gptq", packed("qweight", [3, 8], "scales", [1, 8]), config)
    assert (found.sites[0].rows, found.sites[0].columns) == (8, 24)
    assert found.quantization == theirs


def packed(weight: str, shape_: list[int], scale: str, groups: list[int], shape: bool = False) -> Shapes:
    shapes: dict[str, tuple[str, list[int]]] = {}
    for i in range(4):
        shapes[f"model.layers.{i}.q.{weight}"] = ("I32", shape_)
        shapes[f"model.layers.{i}.q.{scale}"] = ("F16", groups)
        if shape:
            shapes[f"model.layers.{i}.q.weight_shape"] = ("I64", [2])
    return shapes


def test_thousands_of_complaints_are_cut_short(tmp_path: Path) -> None:
    shapes = llama_shapes(40)
    for i in range(20):
        del shapes[f"model.layers.{i}.mlp.up_proj.weight"]
    found = messages(tmp_path, shapes, LLAMA | {"num_hidden_layers": 40})
    assert len(found) == 13
    assert found[-1] == ("R446", "8 more tensors are missing or have other shapes")

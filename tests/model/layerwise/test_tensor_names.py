"""The map between names in a model and in its checkpoint, and its ties, as transformers loads the tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runner.model.checkpoint.headers import read_headers
from runner.model.layerwise.empty_model import build_empty
from runner.model.layerwise.tensor_names import NameMap, name_map
from tests import tiny

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def empty(folder: Path) -> object:
    return build_empty(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "opt", "gpt_neox", "gemma3_text"])
def test_every_parameter_has_the_tensor_that_transformers_gives_it(name: str, tmp_path: Path) -> None:
    """A tensor that is filled with one number of its own shows up where transformers loads it."""
    from safetensors.torch import load_file, save_file

    tiny.save(tmp_path, name)
    tensors = load_file(tmp_path / "model.safetensors")
    numbers = {stored: float(number) for number, stored in enumerate(sorted(tensors), 1)}
    filled = {stored: torch.full_like(tensor, numbers[stored]) for stored, tensor in tensors.items()}
    save_file(filled, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    found = name_map(empty(tmp_path), tensors)
    assert not found.converted
    for parameter, value in loaded.named_parameters(remove_duplicate=False):
        stored = found.stored_name(parameter)
        assert stored is not None, parameter
        assert value.flatten()[0] == numbers[stored], parameter


@pytest.mark.parametrize(
    ("stored", "same", "ties", "both"),
    [
        ({TABLE}, False, {HEAD: TABLE}, {}),
        ({HEAD}, False, {TABLE: HEAD}, {}),
        ({HEAD, TABLE}, False, {}, {HEAD: TABLE}),
        ({HEAD, TABLE}, True, {HEAD: TABLE}, {HEAD: TABLE}),
        (set(), False, {}, {}),
    ],
)
def test_what_is_stored_decides_what_is_tied(
    stored: set[str], same: bool, ties: dict[str, str], both: dict[str, str], tmp_path: Path
) -> None:
    tiny.save(tmp_path, "llama_tied")
    names = (set(read_headers(tmp_path)) - {HEAD, TABLE}) | stored
    found = name_map(empty(tmp_path), names, lambda *_: same)
    assert (found.ties, found.both_stored) == (ties, both)
    held = next(iter(sorted(stored, reverse=True)), None)
    if not both:
        assert [found.stored_name(name) for name in (HEAD, TABLE)] == [held, held]


def test_packed_weights_go_by_the_name_of_the_weight(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama")
    module = "model.layers.0.mlp.up_proj"
    packed = [f"{module}.weight_{part}" for part in ("packed", "scale", "shape")]
    found = name_map(empty(tmp_path), [*(set(read_headers(tmp_path)) - {f"{module}.weight"}), *packed])
    assert found.stored_name(f"{module}.weight") == f"{module}.weight"
    assert set(found.packed) == set(packed[1:])


def test_parameters_that_share_a_tensor() -> None:
    found = NameMap({"a": ("x",)}, {"b": "a", "c": "a"}, {}, (), ())
    assert [found.tied_to(name) for name in ("a", "b", "d")] == [["b", "c"], ["a", "c"], []]
    assert [found.stored_name(name) for name in ("a", "b", "d")] == ["x", "x", None]

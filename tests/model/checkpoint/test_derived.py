"""Derived checkpoints: what is not changed keeps its bytes, and every tensor is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.contracts.account import Account, TensorFate
from runner.errors import StepFailed
from runner.model.checkpoint import derived
from runner.model.checkpoint.derived import Adapter, Derived, Parts, Patches, Selection
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.writer import CheckpointWriter

CONFIG = '{"model_type": "llama",   "dtype": "float32"}'  # not as json.dumps would lay it out


def source(folder: Path, **files: str) -> CheckpointReader:
    folder.mkdir()
    tensors = {
        "a.weight": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16),
        "b.weight": torch.arange(4.0).to(torch.float16),
        "c.bias": torch.ones(3, dtype=torch.int32),
    }
    save_file(tensors, folder / "model.safetensors")
    for name, text in {"config.json": CONFIG, "tokenizer.json": "{}", **files}.items():
        (folder / name).write_text(text)
    return CheckpointReader(folder)


def parts(folder: Path, reader: CheckpointReader, changed: dict[str, list[str]], **tensors: torch.Tensor) -> Parts:
    writer = CheckpointWriter(folder)
    writer.add("new", {f"{name}.weight": tensor for name, tensor in tensors.items()})
    writer.copy("kept", reader, [name for name in reader.names() if name not in changed])
    return Parts(writer, 10**9, changed)


def test_parts_replace_what_changed_and_copy_the_rest(tmp_path: Path) -> None:
    reader = source(tmp_path / "in")
    tensors = parts(tmp_path / "parts", reader, {"a.weight": ["q.weight"]}, q=torch.zeros(5))
    found = derived.write(reader, Derived(tensors), tmp_path / "out")
    assert found == Account({
        "a.weight": TensorFate("changed", ("q.weight",)),
        "b.weight": TensorFate("copied", ("b.weight",)),
        "c.bias": TensorFate("copied", ("c.bias",)),
    })  # fmt: skip
    assert found.counts() == {"changed": 1, "copied": 2}
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert sorted(after) == ["b.weight", "c.bias", "q.weight"]
    for name in ("b.weight", "c.bias"):
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name], before[name])
    assert (tmp_path / "out" / "config.json").read_text() == CONFIG
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_patches_keep_the_layout_of_the_files(tmp_path: Path) -> None:
    reader = source(tmp_path / "in")
    value = torch.full((2, 3), 1 + 2**-9)  # between two values of bfloat16
    found = derived.write(reader, Derived(Patches({"a.weight": lambda: value})), tmp_path / "out")
    assert found.fates["a.weight"] == TensorFate("changed", ("a.weight",))
    assert found.counts() == {"changed": 1, "copied": 2}
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("in", "out"))
    header = reader.header("a.weight")
    assert after[: header.begin] == before[: header.begin]
    assert after[header.end :] == before[header.end :]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["a.weight"], value.to(torch.bfloat16))


def test_a_selection_renames_and_says_why_the_rest_is_dropped(tmp_path: Path) -> None:
    reader = source(tmp_path / "in")
    found = derived.write(reader, Derived(Selection({"b.weight": "x.weight"}, "no room")), tmp_path / "out")
    assert found.fates == {
        "a.weight": TensorFate("dropped", (), "no room"),
        "b.weight": TensorFate("copied", ("x.weight",)),
        "c.bias": TensorFate("dropped", (), "no room"),
    }
    assert list(load_file(tmp_path / "out" / "model.safetensors")) == ["x.weight"]


@pytest.mark.parametrize(
    ("changed", "names", "lines"),
    [
        ({}, ["a.weight", "b.weight"], ["`c.bias` was copied, but `c.bias` is missing"]),
        ({"c.bias": ["c.new"]}, ["a.weight", "b.weight"], ["`c.bias` was changed, but `c.new` is missing"]),
        ({"a.weight": []}, ["a.weight", "b.weight", "c.bias"], ["`a.weight` comes from no tensor of the checkpoint"]),
    ],
    ids=["lost", "not written", "unexplained"],
)
def test_a_tensor_that_nothing_explains_is_an_error(
    changed: dict[str, Any], names: list[str], lines: list[str], tmp_path: Path
) -> None:
    reader = source(tmp_path / "in")
    writer = CheckpointWriter(tmp_path / "parts")
    writer.copy("all", reader, names)
    with pytest.raises(StepFailed) as caught:
        derived.write(reader, Derived(Parts(writer, 10**9, changed)), tmp_path / "out")
    assert caught.value.message == (
        "the tensors of the written checkpoint are not those that were to be written:\n    " + "\n    ".join(lines)
    )


def test_a_copy_of_another_type_is_an_error(tmp_path: Path) -> None:
    reader = source(tmp_path / "in")
    writer = CheckpointWriter(tmp_path / "parts")
    writer.copy("two", reader, ["b.weight", "c.bias"])
    writer.add("one", {"a.weight": torch.zeros(2, 3)})
    with pytest.raises(StepFailed) as caught:
        derived.write(reader, Derived(Parts(writer, 10**9, {})), tmp_path / "out")
    assert caught.value.message == (
        "the tensors of the written checkpoint are not those that were to be written:\n"
        "    `a.weight` was copied, but has another type or shape"
    )


def test_a_copy_with_other_bytes_is_an_error(tmp_path: Path) -> None:
    """Also where the part that holds it was once a copy."""
    reader = source(tmp_path / "in")
    writer = CheckpointWriter(tmp_path / "parts")
    writer.copy("two", reader, ["b.weight", "c.bias"])
    writer.copy("one", reader, ["a.weight"])
    writer.add("one", {"a.weight": torch.zeros(2, 3, dtype=torch.bfloat16)})
    assert writer.copied() == {"b.weight", "c.bias"}
    with pytest.raises(StepFailed) as caught:
        derived.write(reader, Derived(Parts(writer, 10**9, {})), tmp_path / "out")
    assert caught.value.message == (
        "the tensors of the written checkpoint are not those that were to be written:\n"
        "    `a.weight` was to be copied, but was written from other values"
    )


def test_how_weights_are_quantized_goes_with_them(tmp_path: Path) -> None:
    """compression.json and quantize_config.json are copied as long as the result holds the same integers."""
    config = json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}})
    own = {"config.json": config, "quantize_config.json": '{"bits": 4}', "compression.json": '{"kind": "quantize.rtn"}'}
    reader = source(tmp_path / "in", **own)
    derived.write(reader, Derived(Patches()), tmp_path / "kept")
    assert {name: (tmp_path / "kept" / name).read_text() for name in own} == own
    derived.write(reader, Derived(Patches(), config={"model_type": "llama"}), tmp_path / "dense")
    assert sorted(path.name for path in (tmp_path / "dense").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    derived.write(reader, Derived(Patches(), files={"compression.json": {"kind": "new"}}), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "compression.json").read_text()) == {"kind": "new"}


def test_the_card_sees_everything_else(tmp_path: Path) -> None:
    reader = source(tmp_path / "in")
    adapter = Adapter({"r": 1}, {"a.lora_A.weight": torch.ones(1, 3)})

    def card(folder: Path) -> str:
        return ", ".join(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))

    derived.write(reader, Derived(Patches(), adapter=adapter, card=card), tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == (
        "adapter/adapter_config.json, adapter/adapter_model.safetensors, config.json, model.safetensors, tokenizer.json"
    )

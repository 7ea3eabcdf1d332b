"""Parts and shards: bytes that depend on the tensors alone, crashes at every write, sizes, full disks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from runner.errors import MachineError, StepFailed
from runner.model.checkpoint import safetensors_writer
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.writer import CheckpointWriter, copy_tensors, parse_size

INDEX = "model.safetensors.index.json"


def layer(index: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    return {
        f"model.layers.{index}.up.weight_shape": torch.tensor([8, 8]),
        f"model.layers.{index}.up.weight_packed": torch.randint(0, 99, (8, 2), dtype=torch.int32, generator=generator),
        f"model.layers.{index}.up.weight_scale": torch.rand(8, 1, generator=generator).to(torch.bfloat16),
        f"model.layers.{index}.flag": torch.tensor([True, False, True]),
        f"model.layers.{index}.norm.weight": torch.rand(8, generator=generator),
    }


def source(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(9)
    save_file(
        {
            "model.embed.weight": torch.rand(32, 8, generator=generator).to(torch.float16),
            "odd": torch.arange(3).to(torch.int8),
        },
        folder / "model.safetensors",
    )
    return folder


def write(folder: Path, origin: Path, reverse: bool = False) -> CheckpointWriter:
    parts = CheckpointWriter(folder)
    with CheckpointReader(source(origin)) as reader:
        parts.copy("rest", reader, list(reader.names())[:: -1 if reverse else 1])
    for index in (2, 1, 0) if reverse else (0, 1, 2):
        tensors = layer(index)
        parts.add(f"layer-{index:05d}", dict(reversed(tensors.items())) if reverse else tensors)
    return parts


def everything() -> dict[str, torch.Tensor]:
    expected: dict[str, torch.Tensor] = {}
    for index in range(3):
        expected |= layer(index)
    return expected


def read(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_one_shard_holds_all_and_names_its_framework(tmp_path: Path) -> None:
    parts = write(tmp_path / "parts", tmp_path / "model")
    assert parts.finish(tmp_path / "out", 10**9) == ("model.safetensors",)
    assert_equal(read(tmp_path / "out"), everything() | load_file(tmp_path / "model/model.safetensors"))
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [p.name for p in (tmp_path / "parts").glob("*.safetensors")] == []  # the disk holds it once


def test_many_shards_and_their_index(tmp_path: Path) -> None:
    files = write(tmp_path / "parts", tmp_path / "model").finish(tmp_path / "out", 200)
    expected = everything() | load_file(tmp_path / "model/model.safetensors")
    assert_equal(read(tmp_path / "out"), expected)
    shards = [f for f in files if f != INDEX]
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert sorted(files) == sorted(p.name for p in (tmp_path / "out").iterdir())
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in expected.values())}
    for name, shard in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / shard)
    for shard in shards:
        sizes = [t.nbytes for t in load_file(tmp_path / "out" / shard).values()]
        assert sum(sizes) <= 200 or len(sizes) == 1
    with CheckpointReader(tmp_path / "out") as reader:  # the product's own reader agrees
        assert torch.equal(reader.read("model.layers.1.norm.weight"), expected["model.layers.1.norm.weight"])


def test_parts_come_in_the_order_asked_for(tmp_path: Path) -> None:
    order = ("rest", "layer-00000", "layer-00001", "layer-00002")
    write(tmp_path / "parts", tmp_path / "model").finish(tmp_path / "out", 520, order)
    first = load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert "model.embed.weight" in first


def test_bytes_depend_on_the_tensors_alone(tmp_path: Path) -> None:
    for name, reverse in (("a", False), ("b", True)):
        write(tmp_path / f"{name}-parts", tmp_path / "model", reverse).finish(tmp_path / name, 300)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_tensors_are_aligned_for_readers_that_view_in_place(tmp_path: Path) -> None:
    write(tmp_path / "parts", tmp_path / "model").finish(tmp_path / "out", 10**9)
    with CheckpointReader(tmp_path / "out") as reader:
        for header in reader.headers.values():
            assert header.begin % {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(header.dtype, 1) == 0


def test_views_and_empty_parts(tmp_path: Path) -> None:
    parts = CheckpointWriter(tmp_path / "parts")
    square = torch.arange(12.0).reshape(3, 4)
    parts.add("a", {"t": square.T, "scalar": torch.tensor(1.5), "none": torch.zeros(0, 2)})
    single = torch.empty_strided((1, 1), (1, 2), dtype=torch.int32).fill_(7)  # contiguous, and its stride is 2
    parts.add("b", {"single": single})
    parts.add("c", {})
    parts.finish(tmp_path / "out", 10**9)
    found = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(found["t"], square.T)
    assert found["single"].tolist() == [[7]]
    assert found["scalar"].shape == ()
    assert found["none"].shape == (0, 2)


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    parts = CheckpointWriter(tmp_path)
    parts.add("a", {"t": torch.ones(1)})
    parts.add("b", {"t": torch.ones(1)})
    with pytest.raises(ValueError, match="tensor 't' is in two parts"):
        parts.finish(tmp_path / "out", 10)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = CheckpointWriter(tmp_path / "parts")
    parts.add("a", {"t": torch.ones(1)})
    with pytest.raises(StepFailed, match=r"part `b` of the checkpoint is missing in .*parts"):
        parts.finish(tmp_path / "out", 10, ["a", "b"])


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be cleaned up after it."""


@pytest.mark.parametrize("limit", [10**9, 300])
def test_a_crash_at_any_write_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """`finish` is stopped before each of its file operations in turn, then called again until it is through."""
    write(tmp_path / "parts", tmp_path / "model").finish(tmp_path / "whole", limit)
    expected = digests(tmp_path / "whole")
    real = {name: getattr(os, name) for name in ("replace", "fsync", "write", "open", "unlink")}
    steps, crashes = 0, 0
    while True:
        folder = tmp_path / f"crash-{steps}"
        parts = write(folder / "parts", tmp_path / "model")
        left = [steps]

        def guarded(name: str, left: list[int] = left) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, guarded(name))
            patch.setattr(
                Path, "unlink", lambda path, missing_ok=False: guarded("unlink")(path) if path.exists() else None
            )
            try:
                parts.finish(folder / "out", limit)
                crashed = False
            except Killed:
                crashed = True
        CheckpointWriter(folder / "parts").finish(folder / "out", limit)
        CheckpointWriter(folder / "parts").finish(folder / "out", limit)
        assert digests(folder / "out") == expected, f"after a crash at operation {steps}"
        if not crashed:
            break
        steps, crashes = steps + 1, crashes + 1
    assert crashes > 10


def test_a_part_exists_only_once_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = CheckpointWriter(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        parts.add("layer-00000", layer(0))
    assert not parts.has("layer-00000")
    monkeypatch.undo()
    parts.add("layer-00000", layer(0))
    assert parts.has("layer-00000")


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(MachineError) as caught:
        CheckpointWriter(tmp_path).add("layer-00000", layer(0))
    assert caught.value.message.startswith(
        f"the disk is full: {tmp_path / 'layer-00000.safetensors'} could not be written,"
    )
    assert caught.value.help == "free some space and run the same command again: it goes on from here"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "write", denied)
    with pytest.raises(StepFailed) as caught:
        CheckpointWriter(tmp_path).add("a", layer(0))
    assert caught.value.message == f"cannot write {tmp_path / 'a.safetensors'}: Read-only file system"


@pytest.mark.parametrize("how", ["refused", "silent", "absent"])
def test_copying_without_help_of_the_kernel(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        if how == "refused":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return 0

    if how == "absent":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr(safetensors_writer, "_CHUNK", 64)
    write(tmp_path / "parts", tmp_path / "model").finish(tmp_path / "out", 300)
    assert_equal(read(tmp_path / "out"), everything() | load_file(tmp_path / "model/model.safetensors"))


def test_a_source_that_is_cut_short(tmp_path: Path) -> None:
    with CheckpointReader(source(tmp_path)) as reader:
        os.truncate(tmp_path / "model.safetensors", reader.header("model.embed.weight").begin + 10)
        with pytest.raises(StepFailed) as caught:
            CheckpointWriter(tmp_path / "parts").copy("rest", reader, ["model.embed.weight"])
    assert caught.value.message == (
        "model.safetensors, tensor `model.embed.weight`, is cut short: 512 bytes were expected, only 10 could be read"
    )


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("512MiB", 512 << 20), ("1.5 kb", 1500), ("12B", 12), (" 2TB ", 2 * 10**12)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "GB", "0GB", "-1GB", "5XB", "5iB", "5 GB of memory"])
def test_what_is_no_size(text: str) -> None:
    message = f"`{text}` is no size; write a number and a unit, like 5GB, 800MB or 512MiB"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_size(text)


def test_copies_may_have_other_names(tmp_path: Path) -> None:
    """Names that swap places too: each tensor keeps its own bytes, and the order is that of the new names."""
    swapped, one = tmp_path / "swapped.safetensors", tmp_path / "one.safetensors"
    with CheckpointReader(source(tmp_path / "origin")) as reader:
        swap = {"odd": "model.embed.weight", "model.embed.weight": "odd"}
        copy_tensors(swapped, reader, {name: swap.get(name, name) for name in reader.names()})
        copy_tensors(one, reader, {"odd": "even"})
    original = load_file(tmp_path / "origin" / "model.safetensors")
    assert_equal(
        load_file(swapped),
        {"odd": original["model.embed.weight"], "model.embed.weight": original["odd"]},
    )
    assert_equal(load_file(one), {"even": original["odd"]})

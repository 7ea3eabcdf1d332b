"""Reading shards: every dtype, packed modules, damaged files, and memory that stays at one tensor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runner.errors import StepFailed
from runner.model.checkpoint.reader import DTYPES, CheckpointReader

UP = "model.layers.3.mlp.up_proj.weight"


def shard(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    return folder


def two_shards(folder: Path, second: dict[str, torch.Tensor]) -> Path:
    first = {"model.embed_tokens.weight": torch.ones(4, 4)}
    shard(folder, first, "model-00001-of-00002.safetensors")
    shard(folder, second, "model-00002-of-00002.safetensors")
    names = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    names |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


@pytest.mark.parametrize("name", sorted(set(DTYPES) - {"U64", "U32", "U16"}))
def test_every_dtype_is_read_bit_for_bit(name: str, tmp_path: Path) -> None:
    raw = torch.arange(48, dtype=torch.uint8).repeat(8)  # 384 bytes, none of them NaN in any floating dtype
    stored = (raw % 2 if name == "BOOL" else raw).view(DTYPES[name]).reshape(2, 3, -1)
    with CheckpointReader(shard(tmp_path, {"x": stored.clone(), "empty": torch.zeros(0, 3)})) as reader:
        read = reader.read("x")
        assert read.dtype == stored.dtype
        assert torch.equal(read.view(torch.uint8), stored.view(torch.uint8))
        assert reader.read("empty").shape == (0, 3)
        assert reader.names() == ("empty", "x")


def test_scalars_and_many_shards(tmp_path: Path) -> None:
    two_shards(tmp_path, {"s": torch.tensor(2.5), UP: torch.full((2, 2), 3.0)})
    with CheckpointReader(tmp_path) as reader:
        assert reader.read("s") == 2.5
        assert reader.read("model.embed_tokens.weight").sum() == 16
        assert reader.header(UP).shard == "model-00002-of-00002.safetensors"


def test_descriptors_are_few_and_are_closed(tmp_path: Path) -> None:
    names = {f"t{i}": f"model-{i:05d}-of-00020.safetensors" for i in range(20)}
    for name, file in names.items():
        shard(tmp_path, {name: torch.ones(2)}, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    before = len(os.listdir("/proc/self/fd"))
    with CheckpointReader(tmp_path) as reader:
        for name in [*names, *names]:
            assert reader.read(name).sum() == 2
        assert len(os.listdir("/proc/self/fd")) - before <= 8
    assert len(os.listdir("/proc/self/fd")) == before


def nan_at(values: list[tuple[int, int, float]], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.ones(20, 50)
    for row, column, value in values:
        tensor[row, column] = value
    return tensor.to(dtype)


NAN, INF = float("nan"), float("inf")
HELP = "the checkpoint is damaged or its training diverged; download or copy the checkpoint again"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([(12, 40, NAN), *((13, i, NAN) for i in range(16))], "17 NaN values, the first at [12, 40]"),
        ([(19, 49, NAN)], "1 NaN value, the first at [19, 49]"),
        ([(0, 0, -INF)], "1 infinite value, the first at [0, 0]"),
        ([(3, 1, INF), (3, 2, -INF), (9, 9, NAN)], "1 NaN and 2 infinite values, the first at [3, 1]"),
    ],
)
def test_values_that_are_not_finite_are_told(
    values: list[tuple[int, int, float]], found: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    two_shards(tmp_path, {UP: nan_at(values, dtype)})
    with CheckpointReader(tmp_path) as reader, pytest.raises(StepFailed) as caught:
        reader.read(UP)
    assert caught.value.render() == (f"error: `{UP}` in model-00002-of-00002.safetensors holds {found}\nhelp: {HELP}")
    with CheckpointReader(tmp_path) as reader:
        assert not reader.read(UP, finite=False).isfinite().all()


def test_fp8_is_checked_too(tmp_path: Path) -> None:
    shard(tmp_path, {"w": nan_at([(1, 2, NAN)], torch.float8_e4m3fn), "ok": torch.ones(3, 3).to(torch.float8_e5m2)})
    with CheckpointReader(tmp_path) as reader:
        reader.read("ok")
        with pytest.raises(StepFailed, match=r"`w` in model.safetensors holds 1 NaN value, the first at \[1, 2\]"):
            reader.read("w")


def test_large_finite_values_pass(tmp_path: Path) -> None:
    """Their sum would overflow fp16."""
    shard(tmp_path, {"w": torch.full((64, 64), 60000.0).to(torch.float16)})
    with CheckpointReader(tmp_path) as reader:
        assert reader.read("w").max() == 60000


def test_a_shard_that_shrinks_while_reading(tmp_path: Path) -> None:
    shard(tmp_path, {"w": torch.ones(8, 8)})
    with CheckpointReader(tmp_path) as reader:
        os.truncate(tmp_path / "model.safetensors", reader.header("w").begin + 100)
        with pytest.raises(StepFailed) as caught:
            reader.read("w")
    assert caught.value.render() == (
        "error: model.safetensors is cut short: `w` takes 256 bytes there, only 100 could be read\n"
        "help: download or copy the checkpoint again"
    )


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    shard(tmp_path, {"w": torch.ones(1)})
    with CheckpointReader(tmp_path) as reader, pytest.raises(StepFailed) as caught:
        reader.read("v")
    assert caught.value.message == f"the checkpoint in {tmp_path} has no tensor `v`"


def test_a_shard_that_vanishes(tmp_path: Path) -> None:
    shard(tmp_path, {"w": torch.ones(1)})
    with CheckpointReader(tmp_path) as reader:
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(StepFailed) as caught:
            reader.read("w")
    assert caught.value.message == f"cannot open {tmp_path / 'model.safetensors'}: No such file or directory"


def test_packed_tensors_that_no_config_describes(tmp_path: Path) -> None:
    shard(tmp_path, {"m.weight_packed": torch.zeros(2, 2, dtype=torch.int32)})
    (tmp_path / "config.json").write_text("{}")
    with CheckpointReader(tmp_path) as reader, pytest.raises(StepFailed) as caught:
        reader.read_module_weight("m")
    config = tmp_path / "config.json"
    assert caught.value.message == f"`m` is packed, but quantization_config in {config} does not describe it"


def test_a_quantization_that_cannot_be_read(tmp_path: Path) -> None:
    shard(tmp_path, {"m.qweight": torch.zeros(2, 2, dtype=torch.int32)})
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "aqlm"}}')
    with CheckpointReader(tmp_path) as reader, pytest.raises(StepFailed) as caught:
        reader.read_module_weight("m")
    assert caught.value.message == (
        f"{tmp_path / 'config.json'}: checkpoints quantized with `aqlm` cannot be read; a dense checkpoint is needed"
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_memory_is_one_tensor(tmp_path: Path) -> None:
    """Reading 24 tensors of 8 MB leaves the peak near one of them: nothing stays mapped."""
    shard(tmp_path, {f"t{i}": torch.zeros(2 << 20) for i in range(24)})
    code = f"""
import resource
from pathlib import Path
from runner.model.checkpoint.reader import CheckpointReader
with CheckpointReader(Path({str(tmp_path)!r})) as reader:
    reader.read("t0")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in reader.names():
        reader.read(name)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) < 20_000  # kB

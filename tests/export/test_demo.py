"""The embedded model as an INT4 graph in onnxruntime: the tokens and logits of its dequantized checkpoint.

`.ci/run` builds and compares such a graph by a command of README.md; these run nightly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.data.tokenizer import Tokenizer
from runner.model.checkpoint import adapter_config, adapter_writer
from runner.runtime.greedy import greedy
from runner.runtime.onnxruntime import OnnxRuntime
from runner.runtime.protocol import Ids
from runner.runtime.transformers import Transformers
from runner.steps.kinds import find
from tests.export.exported import build, pair
from tests.host import Host

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "runner" / "demo" / "models" / "tiny-llama"
TOLERANCE = 1e-3  # the promise for a float32 graph; 4e-5 is what there is
ADAPTED = "model.layers.3.mlp.gate_proj"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint whose layers are packed in every way that a graph carries, an adapter beside one; its graph."""
    folder = tmp_path_factory.mktemp("demo")
    mixed: dict[str, Any] = {
        "layers.0.*": {"symmetric": False}, "layers.1.*": {"group_size": 64}, "layers.2.*": {"group_size": 32},
        "layers.3.*": {"group_size": 64, "symmetric": False}, "layers.4.self_attn.*": {"group_size": "channel"},
        "layers.4.mlp.*": {"bits": 8}, "layers.5.self_attn.*": {"bits": 8, "group_size": 32, "symmetric": False},
        "layers.5.mlp.gate_proj": {"bits": 8, "group_size": "channel"}, "layers.5.mlp.up_proj": {"bits": 3},
    }  # fmt: skip
    host = Host(folder, "quantize.rtn", MODEL, bits=4, group_size=128, overrides=mixed)
    find("quantize.rtn").run(host)
    weight = find_shape(ADAPTED)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{ADAPTED}.lora_A.weight": torch.randn(4, weight[1], generator=generator) / 16,
        f"{ADAPTED}.lora_B.weight": torch.randn(weight[0], 4, generator=generator) / 16,
    }
    adapter_writer.write(host.out_dir, adapter_config.config(4, 8.0, [ADAPTED]), tensors)
    return host.out_dir, build(folder / "onnx", host.out_dir)


def find_shape(module: str) -> tuple[int, ...]:
    from runner.model.checkpoint.reader import CheckpointReader

    with CheckpointReader(MODEL) as reader:
        return tuple(reader.header(f"{module}.weight").shape)


@pytest.fixture(scope="module")
def runtimes(models: tuple[Path, Path]) -> tuple[OnnxRuntime, Transformers]:
    return pair(models[1], models[0])


@pytest.fixture(scope="module")
def ids() -> Ids:
    text = (ROOT / "runner" / "errors.py").read_text("utf-8") + (ROOT / "runner" / "cli.py").read_text("utf-8")
    return np.array(Tokenizer(MODEL).encode([text], special=False)[0], np.int64)


def test_every_way_of_packing_is_there(models: tuple[Path, Path]) -> None:
    from runner.runtime.open import engine

    stored = (engine(models[1]) or {})["stored"]
    assert len(stored) == 10
    assert sum(stored.values()) == 6 * 7


def test_greedy_tokens_are_equal(runtimes: tuple[OnnxRuntime, Transformers], ids: Ids) -> None:
    ours, theirs = runtimes
    for number in range(20):
        start = 40 * number
        prompt = ids[None, start : start + 8 + 4 * (number % 5)]
        assert greedy(ours, prompt, 64) == greedy(theirs, prompt, 64), number


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 31), (3, 128), (4, 200), (1, 512)])
def test_logits_are_those_of_the_checkpoint(
    batch: int, length: int, runtimes: tuple[OnnxRuntime, Transformers], ids: Ids
) -> None:
    """Whole, and the last tokens one by one after the others."""
    ours, theirs = runtimes
    given = np.stack([ids[100 * row : 100 * row + length] for row in range(batch)])
    wanted = theirs.prefill(given)
    assert np.abs(ours.prefill(given) - wanted).max() < TOLERANCE
    if length > 8:
        ours.prefill(given[:, : length - 6])
        steps = [ours.decode(given[:, place : place + 1]) for place in range(length - 6, length)]
        assert np.abs(np.concatenate(steps, 1) - wanted[:, -6:]).max() < TOLERANCE


def test_in_float16_the_graph_is_nearer_than_the_checkpoint_itself(
    tmp_path: Path, models: tuple[Path, Path], runtimes: tuple[OnnxRuntime, Transformers], ids: Ids
) -> None:
    """To the checkpoint in float32: sums and norms are rounded less often. 0.014 is what there is, and 0.056."""
    given = np.stack([ids[100 * row : 100 * row + 200] for row in range(4)])
    wanted = runtimes[1].prefill(given)
    half = Transformers(models[0], dtype=torch.float16)
    ours = OnnxRuntime(build(tmp_path, models[0], precision="fp16"), threads=1)
    distance = float(np.abs(ours.prefill(given) - wanted).max())
    assert distance < 2e-2
    assert 2 * distance < np.abs(half.prefill(given).astype(np.float32) - wanted).max()


def test_prompts_of_several_lengths_beside_each_other(
    models: tuple[Path, Path], runtimes: tuple[OnnxRuntime, Transformers], ids: Ids
) -> None:
    """Padded on the left: prefill, then a token each, as each prompt has them alone."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(models[1] / "onnx/model.onnx"))
    lengths, longest = (60, 41, 7, 1), 60
    rows = [ids[200 * i : 200 * i + length + 1] for i, length in enumerate(lengths)]  # the last is for decoding
    given, mask = np.zeros((2, 4, longest), np.int64)
    for row, (tokens, length) in enumerate(zip(rows, lengths, strict=True)):
        given[row, longest - length :], mask[row, longest - length :] = tokens[:-1], 1
    past = {value.name: np.zeros((4, value.shape[1], 0, value.shape[3]), np.float32)
            for value in session.get_inputs()[3:]}  # fmt: skip
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    first, *present = session.run(
        None, {"input_ids": given, "attention_mask": mask, "position_ids": positions, **past}
    )  # fmt: skip
    longer = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
    second, *_ = session.run(None, {
        "input_ids": np.array([[row[-1]] for row in rows]), "attention_mask": longer,
        "position_ids": np.array(lengths)[:, None], **dict(zip(past, present, strict=True)),
    })  # fmt: skip
    for row, (tokens, length) in enumerate(zip(rows, lengths, strict=True)):
        wanted = runtimes[1].prefill(tokens[None])[0]
        assert np.abs(first[row, longest - length :] - wanted[:-1]).max() < TOLERANCE
        assert np.abs(second[row, 0] - wanted[-1]).max() < TOLERANCE

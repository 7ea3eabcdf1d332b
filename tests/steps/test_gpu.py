"""Every kind that computes with torch, on a GPU beside the CPU: the same step on the same tiny checkpoint.

A GPU adds in another order, so numbers agree and bytes need not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import Interrupted
from runner.model.checkpoint.reader import CheckpointReader
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

LAYERWISE: list[tuple[str, dict[str, Any]]] = [
    ("quantize.rtn", {"group_size": 16}),
    ("quantize.gptq", {"group_size": 16}),
    ("quantize.gptq", {"group_size": 16, "symmetric": False, "act_order": False}),
    ("quantize.gptq", {"group_size": 16, "bits": 3}),  # two flows: GPTAQ
    ("quantize.gptq", {"group_size": 16, "true_sequential": False}),
    ("prune.magnitude", {"sparsity": 0.5}),
    ("prune.wanda", {"sparsity": 0.5}),
    ("prune.wanda", {"pattern": "2:4"}),
]


def run(folder: Path, device: str, kind: str, checkpoint: Path, **arguments: Any) -> tuple[Host, Any]:
    host = Host(folder / device, kind, checkpoint, **arguments)
    host.device = device
    return host, find(kind).run(host)


def both(folder: Path, kind: str, checkpoint: Path, **arguments: Any) -> tuple[Any, Any]:
    """Result and host of the step on the GPU, and on the CPU."""
    return tuple(run(folder, device, kind, checkpoint, **arguments) for device in ("cuda", "cpu"))  # type: ignore[return-value]


def score(folder: Path, checkpoint: Path, ids: torch.Tensor) -> float:
    return float(run(folder, "cpu", "evaluate.perplexity", checkpoint, ids=ids)[1].metrics["perplexity"])


@pytest.mark.parametrize(("kind", "params"), LAYERWISE, ids=lambda value: str(value))
def test_a_layerwise_kind_does_the_same(kind: str, params: dict[str, Any], tmp_path: Path) -> None:
    ids = None if kind in ("quantize.rtn", "prune.magnitude") else tiny.tokens(16, 24)
    source = tiny.save(tmp_path / "model")
    (gpu, on_gpu), (cpu, on_cpu) = both(tmp_path, kind, source, ids=ids, **params)
    assert on_gpu.metrics["modules"] == on_cpu.metrics["modules"]
    if "error" in on_cpu.metrics:
        assert on_gpu.metrics["error"] == pytest.approx(on_cpu.metrics["error"], rel=0.05)
    probe = tiny.tokens(4, 24)
    theirs = score(tmp_path / "b", cpu.out_dir, probe)
    assert score(tmp_path / "a", gpu.out_dir, probe) == pytest.approx(theirs, rel=0.1)
    with CheckpointReader(gpu.out_dir) as a, CheckpointReader(cpu.out_dir) as b:
        assert a.headers.keys() == b.headers.keys()


@pytest.mark.parametrize("name", sorted(tiny.ARCHITECTURES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gptq_and_perplexity_of_every_architecture(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "model", name, dtype)
    ids = tiny.tokens(16, 24)
    host, result = run(tmp_path, "cuda", "quantize.gptq", source, ids=ids, group_size=16)
    assert 0 < result.metrics["error"] < 0.2
    probe = tiny.tokens(4, 24)
    ours = run(tmp_path / "p", "cuda", "evaluate.perplexity", host.out_dir, ids=probe)[1].metrics["perplexity"]
    theirs = run(tmp_path / "p", "cpu", "evaluate.perplexity", host.out_dir, ids=probe)[1].metrics["perplexity"]
    assert ours == pytest.approx(theirs, rel=1e-3 if dtype is torch.float32 else 0.05)


@pytest.mark.parametrize("params", [{}, {"bits": 3}], ids=str)
def test_gptq_twice_gives_the_same_bytes_also_when_interrupted(params: dict[str, Any], tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "model", dtype=torch.bfloat16)
    ids = tiny.tokens(16, 24)
    whole, _ = run(tmp_path / "whole", "cuda", "quantize.gptq", source, ids=ids, group_size=16, **params)
    with pytest.raises(Interrupted):
        run(tmp_path / "torn", "cuda", "quantize.gptq", source, ids=ids, group_size=16, stop_after=1, **params)
    torn, _ = run(tmp_path / "torn", "cuda", "quantize.gptq", source, ids=ids, group_size=16, **params)
    for path in whole.out_dir.glob("*.safetensors"):
        assert path.read_bytes() == (torn.out_dir / path.name).read_bytes()


def test_divergence_from_another_checkpoint(tmp_path: Path) -> None:
    source, ids = tiny.save(tmp_path / "model"), tiny.tokens(8, 24)
    packed, _ = run(tmp_path, "cuda", "quantize.rtn", source, group_size=16)
    (_, on_gpu), (_, on_cpu) = both(
        tmp_path / "d", "evaluate.divergence", packed.out_dir, ids=ids, others={"against": source}
    )
    for name, value in on_cpu.metrics.items():
        assert on_gpu.metrics[name] == pytest.approx(value, rel=0.02, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("recover.lora", {"rank": 4, "alpha": 8, "steps": 12, "batch_size": 4, "learning_rate": 0.02}),
        ("recover.scales", {"steps": 15, "batch_size": 4, "learning_rate": 0.02}),
        ("recover.eora", {"rank": 4}),
        ("distill.logits", {"steps": 12, "batch_size": 4, "learning_rate": 0.01}),
    ],
    ids=lambda value: str(value),
)
def test_what_recovers_or_distills_brings_the_model_nearer(kind: str, params: dict[str, Any], tmp_path: Path) -> None:
    source, ids = tiny.save(tmp_path / "model", dtype=torch.bfloat16), tiny.tokens(16, 16)
    start, _ = run(tmp_path, "cuda", "quantize.rtn", source, group_size=32, bits=3)
    if kind == "distill.logits":
        start, _ = run(tmp_path / "p", "cuda", "prune.magnitude", source, sparsity=0.6)
    other = "against" if kind == "recover.eora" else "teacher"
    host, _ = run(tmp_path / "r", "cuda", kind, start.out_dir, ids=ids, others={other: source}, **params)

    def distance(checkpoint: Path, place: str) -> float:
        _, result = run(
            tmp_path / place, "cuda", "evaluate.divergence", checkpoint, ids=ids, others={"against": source}
        )
        return float(result.metrics["kl"])

    assert distance(host.out_dir, "after") < 0.95 * distance(start.out_dir, "before")


def test_latency_of_a_checkpoint(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "model", dtype=torch.bfloat16)
    _, result = run(tmp_path, "cuda", "evaluate.latency", source, prompt_tokens=16, new_tokens=16)
    assert result.metrics["decode_tokens_per_second"] > 0
    assert result.metrics["gpu_memory"] > 0

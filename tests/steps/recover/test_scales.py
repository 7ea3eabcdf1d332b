"""recover.scales on tiny checkpoints: the same files with other scales, and a lower loss in plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.model.checkpoint.reader import CheckpointReader
from runner.steps.kinds import find
from tests.host import Host
from tests.tiny import tokens
from tests.training.recovering import perplexity, plain, quantized, streamed

KIND = "recover.scales"


def run(tmp_path: Path, folder: Path, teacher: Path, **params: Any) -> Host:
    params = {"steps": 15, "batch_size": 4, "learning_rate": 0.02, "precision": "fp32", **params}
    host = Host(tmp_path, KIND, folder, tokens(16, 16), others={"teacher": teacher}, **params)
    find(KIND).run(host)
    return host


@pytest.mark.parametrize(
    "made",
    [
        {"kind": "quantize.gptq"},
        {"kind": "quantize.rtn", "symmetric": False},
        {"kind": "quantize.rtn", "group_size": "channel", "overrides": {"q_proj": {"bits": 4}}},
        {"kind": "quantize.rtn", "format": "gptq", "bits": 4},
        {"kind": "quantize.rtn", "format": "gptq", "symmetric": False},
    ],
    ids=["symmetric", "asymmetric", "mixed", "gptq", "gptq-asymmetric"],
)
def test_only_scales_change(made: dict[str, Any], tmp_path: Path) -> None:
    """Integers and zero points keep their bytes, files their layout, scales their type; the loss of training falls."""
    dense, packed = quantized(tmp_path, **made)
    host = run(tmp_path / "scales", packed, dense)
    losses = [event["loss"] for event in host.events if event["event"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    assert {p.name for p in host.out_dir.iterdir()} == {p.name for p in packed.iterdir()}
    for file in packed.iterdir():
        if file.suffix != ".safetensors" and file.name != "README.md":
            assert file.read_bytes() == (host.out_dir / file.name).read_bytes()
    with CheckpointReader(packed) as before, CheckpointReader(host.out_dir) as after:
        assert before.headers == after.headers
        changed = {name for name in before.names() if not torch.equal(before.read(name), after.read(name))}
        scales = {name for name in before.names() if name.endswith((".weight_scale", ".scales"))}
        assert changed == scales
    card = (host.out_dir / "README.md").read_text()
    assert "linear modules: " in card
    assert "adapter" not in card


@pytest.mark.parametrize("symmetric", [True, False])
def test_plain_transformers_computes_what_was_trained(symmetric: bool, tmp_path: Path) -> None:
    """bfloat16 scales: what training computed with is what is stored. Norms too."""
    dense, packed = quantized(tmp_path, "quantize.rtn", torch.bfloat16, symmetric=symmetric)
    host = run(tmp_path / "scales", packed, dense, norms=True, loss="next_token")
    with CheckpointReader(packed) as before, CheckpointReader(host.out_dir) as after:
        assert before.headers == after.headers
        changed = {name for name in before.names() if not torch.equal(before.read(name), after.read(name))}
        wanted = {n for n in before.names() if n.endswith("weight_scale") or "norm" in n}
        assert changed <= wanted
        assert {name for name in changed if "norm" in name}
    from safetensors.torch import load_file

    from runner.training.objectives import recovery

    arguments = {
        "checkpoint": str(packed), "precision": "fp32", "norms": True, "cache": None, "distill_alpha": 0.0,
        "temperature": 1.0,
    }  # fmt: skip
    trained = recovery.scales(arguments, "cpu").model
    weights = load_file(host.scratch_dir / "training" / "weights.safetensors")
    assert set(weights) == {n for n, p in trained.named_parameters() if p.requires_grad}
    trained.load_state_dict(weights, strict=False)
    ids = tokens(16, 16)
    expected = perplexity(trained.eval(), ids)
    # transformers unpacks symmetric weights to the type asked for, float32, without the rounding to that of the scales.
    assert perplexity(plain(host.out_dir), ids) == pytest.approx(expected, rel=1e-3 if symmetric else 1e-6)
    assert expected < 0.95 * perplexity(plain(packed), ids)
    assert streamed(tmp_path / "a", host.out_dir, ids) == pytest.approx(expected, rel=1e-2)


def test_untrained_scales_are_written_as_they_were(tmp_path: Path) -> None:
    """δ = 0 gives the same bits."""
    dense, packed = quantized(tmp_path, "quantize.rtn", torch.bfloat16)
    host = run(tmp_path / "scales", packed, dense, learning_rate=1e-12, steps=2, norms=True)
    for file in packed.glob("*.safetensors"):
        assert file.read_bytes() == (host.out_dir / file.name).read_bytes()


@pytest.mark.nightly
def test_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    dense, packed = quantized(tmp_path, "quantize.rtn")
    outs = [run(tmp_path / name, packed, dense, steps=4).out_dir for name in ("one", "two")]
    for path in outs[0].iterdir():
        assert path.read_bytes() == (outs[1] / path.name).read_bytes()

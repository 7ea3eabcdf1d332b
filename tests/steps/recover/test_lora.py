"""recover.lora on tiny checkpoints: what it writes, what anyone reads of it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import Interrupted, StepFailed
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.companions import COMPRESSION
from runner.model.checkpoint.reader import CheckpointReader
from runner.steps.kinds import find
from tests.host import Host
from tests.tiny import save, tokens
from tests.training.recovering import perplexity, plain, quantized, streamed, with_adapter

KIND = "recover.lora"


def run(tmp_path: Path, folder: Path, teacher: Path, **params: Any) -> tuple[Host, Any]:
    params = {"rank": 4, "alpha": 8, "steps": 12, "batch_size": 4, "learning_rate": 0.02, "precision": "fp32", **params}
    host = Host(tmp_path, KIND, folder, tokens(16, 16), others={"teacher": teacher}, **params)
    return host, find(KIND).run(host)


def losses(host: Host) -> list[float]:
    return [event["loss"] for event in host.events if event["event"] == "train"]


def test_an_adapter_kept_beside_integers(tmp_path: Path) -> None:
    """Everything else keeps its bytes; streaming and transformers with peft agree on what it computes."""
    dense, packed = quantized(tmp_path)
    host, result = run(tmp_path / "lora", packed, dense)
    assert losses(host)[-1] < 0.8 * losses(host)[0]
    assert result.details["merge"] == "keep"
    with CheckpointReader(packed) as before, CheckpointReader(host.out_dir) as after:
        assert before.names() == after.names()
        for name in before.names():
            assert torch.equal(before.read(name), after.read(name))
    ids = tokens(4, 20)
    adapted = perplexity(plain(host.out_dir, adapter=True), ids)
    without = perplexity(plain(host.out_dir), ids)
    assert abs(adapted - without) > 1e-2 * without
    assert streamed(tmp_path / "a", host.out_dir, ids) == pytest.approx(adapted, rel=1e-4)
    assert streamed(tmp_path / "b", packed, ids) == pytest.approx(without, rel=1e-4)
    adapter = facts(host.out_dir, "out").adapter
    assert adapter is not None
    assert adapter["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    card = (host.out_dir / "README.md").read_text()
    assert 'PeftModel.from_pretrained(model, "path/to/this/folder", subfolder="adapter")' in card
    assert "14 linear modules: 3-bit, symmetric, groups of 32." in card


def test_an_adapter_over_bfloat16(tmp_path: Path) -> None:
    """Adapters are float32 over it, in peft and here."""
    dense, packed = quantized(tmp_path, "quantize.rtn", torch.bfloat16, overrides={"q_proj": {"bits": 4}})
    host, _ = run(tmp_path / "lora", packed, dense, variant="dora")
    ids = tokens(4, 20)
    model = plain(host.out_dir, dtype=torch.bfloat16)
    model(ids)  # several schemes: the weights are unpacked now
    assert 'model(**tokenizer("once", return_tensors="pt"))' in (host.out_dir / "README.md").read_text()
    expected = perplexity(with_adapter(model, host.out_dir), ids)
    assert streamed(tmp_path / "a", host.out_dir, ids) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_variants_are_read_as_peft_reads_them(variant: str, tmp_path: Path) -> None:
    dense, packed = quantized(tmp_path, "quantize.rtn", symmetric=False)
    host, _ = run(
        tmp_path / "lora", packed, dense, variant=variant, dropout=0.1, target_modules=["q_proj", "*.1.mlp.*"]
    )
    assert losses(host)[-1] < losses(host)[0]
    ids = tokens(4, 20)
    expected = perplexity(plain(host.out_dir, adapter=True), ids)
    assert abs(expected - perplexity(plain(packed), ids)) > 1e-3 * expected
    assert streamed(tmp_path / "a", host.out_dir, ids) == pytest.approx(expected, rel=1e-4)
    config = json.loads((host.out_dir / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == [
        "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj",
    ]  # fmt: skip


def test_dense_weights_take_the_adapter_in(tmp_path: Path) -> None:
    dense = save(tmp_path / "model", "llama_tied", torch.bfloat16)
    host, result = run(tmp_path / "lora", dense, dense, loss="next_token")
    assert losses(host)[-1] < losses(host)[0]
    assert result.details["merge"] == "merge"
    assert not (host.out_dir / "adapter").exists()
    with CheckpointReader(dense) as before, CheckpointReader(host.out_dir) as after:
        assert {n: (h.dtype, h.shape, h.shard, h.begin) for n, h in before.headers.items()} == {
            n: (h.dtype, h.shape, h.shard, h.begin) for n, h in after.headers.items()
        }
        changed = {n for n in before.names() if not torch.equal(before.read(n), after.read(n))}
    assert changed == {f"{linear.name}.weight" for linear in facts(dense, "dense").sites}
    ids = tokens(4, 20)
    assert streamed(tmp_path / "a", host.out_dir, ids) < streamed(tmp_path / "b", dense, ids)


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_a_pruned_checkpoint_keeps_every_zero(variant: str, tmp_path: Path) -> None:
    dense = save(tmp_path / "model", dtype=torch.bfloat16)
    prune = Host(tmp_path / "prune", "prune.wanda", dense, tokens(), pattern="2:4")
    find("prune.wanda").run(prune)
    host, _ = run(tmp_path / "lora", prune.out_dir, dense, variant=variant)
    assert losses(host)[-1] < losses(host)[0]
    with CheckpointReader(prune.out_dir) as before, CheckpointReader(host.out_dir) as after:
        for linear in facts(prune.out_dir, "pruned").sites:
            old, new = (reader.read(f"{linear.name}.weight") for reader in (before, after))
            zeros = old == 0
            assert torch.equal(old[zeros].view(torch.int16), new[zeros].view(torch.int16))
            assert not torch.equal(old, new)
            groups = (new.view(new.shape[0], -1, 4) == 0).sum(-1)
            assert int(groups.min()) >= 2


def test_what_is_merged_is_what_was_trained(tmp_path: Path) -> None:
    """The loss of the written checkpoint is that of the adapters before they were merged under the mask."""
    dense = save(tmp_path / "model")  # float32: merging rounds as little as the product itself
    prune = Host(tmp_path / "prune", "prune.wanda", dense, tokens())
    find("prune.wanda").run(prune)
    kept, _ = run(tmp_path / "keep", prune.out_dir, dense)
    from runner.training.objectives import recovery

    arguments = json.loads((kept.scratch_dir / "training" / "fitted.json").read_text())["label"]["arguments"]
    trainable = recovery.adapters(arguments, "cpu")
    from safetensors.torch import load_file

    trainable.model.load_state_dict(load_file(kept.scratch_dir / "training" / "weights.safetensors"), strict=False)
    ids = tokens(4, 20)
    expected = perplexity(trainable.model.eval(), ids)
    assert perplexity(plain(kept.out_dir), ids) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "format"), [("quantize.gptq", "pack-quantized"), ("quantize.rtn", "gptq")])
def test_quantized_again_as_before(kind: str, format: str, tmp_path: Path) -> None:
    dense, packed = quantized(tmp_path, kind, format=format)
    made = json.loads((packed / COMPRESSION).read_text())
    assert made["kind"] == kind
    assert "data" not in made["params"]
    assert made["calibration"] == ([6, 24] if kind == "quantize.gptq" else None)
    host, result = run(tmp_path / "lora", packed, dense, merge="requantize")
    assert result.details["merge"] == "requantize"
    with CheckpointReader(packed) as before, CheckpointReader(host.out_dir) as after:
        assert {n: (h.dtype, h.shape) for n, h in before.headers.items()} == {
            n: (h.dtype, h.shape) for n, h in after.headers.items()
        }
        name = "model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(before.read_weight(name), after.read_weight(name))
    for name in ("config.json", COMPRESSION):
        assert (packed / name).read_text() == (host.out_dir / name).read_text()
    assert not (host.out_dir / "adapter").exists()
    assert {p.name for p in host.out_dir.iterdir()} == {p.name for p in packed.iterdir()}


def test_what_was_quantized_elsewhere_is_not_quantized_again(tmp_path: Path) -> None:
    dense, packed = quantized(tmp_path, "quantize.rtn")
    (packed / COMPRESSION).unlink()
    with pytest.raises(StepFailed) as caught:
        run(tmp_path / "lora", packed, dense, merge="requantize")
    assert caught.value.message == (
        "`merge: requantize` needs to know how the checkpoint was quantized, and it has no `compression.json` that "
        "says so"
    )
    assert caught.value.help == "use `merge: keep`, or quantize the model in this recipe"


def test_what_a_foreign_tool_quantized_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    dense, packed = quantized(tmp_path, "quantize.rtn")
    made = json.loads((packed / COMPRESSION).read_text())
    (packed / COMPRESSION).write_text(json.dumps({**made, "kind": "foreign.gptqmodel"}))
    with pytest.raises(StepFailed) as caught:
        run(tmp_path / "lora", packed, dense, merge="requantize")
    assert caught.value.message == (
        "`foreign.gptqmodel`, which quantized the checkpoint, cannot quantize it again with an adapter merged into it"
    )
    assert caught.value.help == "use `merge: keep`, or quantize with one of the kinds `quantize.*`"
    assert not (tmp_path / "lora" / "scratch" / "teacher").exists()


def test_a_dense_checkpoint_may_keep_its_adapter(tmp_path: Path) -> None:
    dense = save(tmp_path / "model", "gpt2")
    host, _ = run(tmp_path / "lora", dense, dense, loss="next_token", merge="keep")
    ids = tokens(4, 20)
    expected = perplexity(plain(host.out_dir, adapter=True), ids)
    assert expected < perplexity(plain(dense), ids)
    assert streamed(tmp_path / "a", host.out_dir, ids) == pytest.approx(expected, rel=1e-4)


@pytest.mark.nightly
def test_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    dense, packed = quantized(tmp_path, "quantize.rtn")
    outs = [run(tmp_path / name, packed, dense, dropout=0.1)[0].out_dir for name in ("one", "two")]
    names = sorted(path.relative_to(outs[0]) for path in outs[0].rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(outs[1]) for path in outs[1].rglob("*") if path.is_file())
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name


class Stopping(Host):
    """Asks to stop after three steps of training."""

    def safe_point(self) -> None:
        if sum(event["event"] == "train" for event in self.events) >= 3:
            raise Interrupted("stopped")


@pytest.mark.parametrize("merge", [pytest.param("auto", marks=pytest.mark.nightly), "requantize"])
def test_an_interrupted_step_ends_with_the_same_bytes(merge: str, tmp_path: Path) -> None:
    dense, packed = quantized(tmp_path, "quantize.rtn")
    whole, _ = run(tmp_path / "whole", packed, dense, dropout=0.1, merge=merge, steps=6)
    others = {"teacher": dense}
    params = {name: value for name, value in whole.params.items() if name != "data"}
    with pytest.raises(Interrupted):
        find(KIND).run(Stopping(tmp_path / "stopped", KIND, packed, tokens(16, 16), others=others, **params))
    again = Host(tmp_path / "stopped", KIND, packed, tokens(16, 16), others=others, **params)
    find(KIND).run(again)
    assert next(event["at"] for event in again.events if event["event"] == "train") > 3
    for path in sorted(whole.out_dir.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again.out_dir / path.relative_to(whole.out_dir)).read_bytes(), path.name

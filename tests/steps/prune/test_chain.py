"""Pruned models in steps that follow: the unpruned one teaches them, and they are planned as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.plan.resolve import resolve
from runner.recipe.load import loads
from runner.steps.kinds import find
from tests.host import Host
from tests.steps.distill.training import kl, model_of
from tests.tiny import save, tokens

RECIPE = """\
version: 1
name: loop
model: {source: demo:tiny-llama}
data:
  calibration: {source: demo:stdlib, split: calibration, samples: 8, sequence_length: 64}
  train: {source: demo:stdlib, split: train, samples: 8, sequence_length: 64}
steps:
  - prune.width: {data: calibration, feed_forward: {drop: 0.25}, heads: {drop: 0.5}, hidden_size: {keep: 192}}
  - distill.logits: {data: train, steps: 1, batch_size: 1}
  - prune.depth: {data: calibration, drop: 1}
  - transform.smooth: {data: calibration}
  - recover.lora: {data: train, steps: 1, batch_size: 1, rank: 2}
  - distill.features: {data: train, steps: 1, batch_size: 1}
  - quantize.gptq: {data: calibration, group_size: 64}
"""


def test_a_plan_follows_widths_and_depth() -> None:
    """prune → distil → prune → …: every step is planned on the shapes that the steps before it leave."""
    steps = {step.id: step for step in resolve(loads(RECIPE, "loop.yaml")).steps}
    accounts = {id: step.account for id, step in steps.items() if step.account is not None}
    assert [step.inputs.get("teacher") for step in steps.values()] == [
        None, "model", None, None, "model", "model", None,
    ]  # fmt: skip
    assert accounts["width"].written["model.layers.5.mlp.down_proj.weight"] == (192, 576)
    assert accounts["width"].written["model.layers.5.self_attn.q_proj.weight"] == (128, 192)
    assert accounts["width"].written["model.layers.5.self_attn.k_proj.weight"] == (128, 192)
    assert accounts["depth"].written["model.layers.4.mlp.down_proj.weight"] == (192, 576)
    assert "model.layers.5.mlp.down_proj.weight" not in accounts["depth"].written
    assert accounts["gptq"].written["model.layers.4.mlp.down_proj.weight_packed"] == (192, 72)
    assert accounts["width"].reasons() == {
        "changed": {"it has fewer rows or columns": 56}, "tied": {"shares `model.embed_tokens.weight`": 1},
    }  # fmt: skip
    roles = accounts["smooth"].by_role()
    assert set(roles["q"]) == {"changed"}
    assert set(roles["embedding"]) == {"kept"}


def test_the_unpruned_model_teaches_a_narrower_one(tmp_path: Path) -> None:
    teacher, ids = save(tmp_path / "teacher", "llama"), tokens(16)
    width = Host(tmp_path / "width", "prune.width", teacher, tokens(), multiple_of=8, feed_forward={"drop": 0.25},
                 heads={"drop": 0.5}, hidden_size={"keep": 24})  # fmt: skip
    find("prune.width").run(width)
    training: dict[str, Any] = {"steps": 12, "batch_size": 4, "learning_rate": 0.005, "warmup": 0}
    for kind in ("distill.logits", "recover.lora"):
        host = Host(tmp_path / kind, kind, width.out_dir, ids, others={"teacher": teacher}, **training)
        find(kind).run(host)
        assert kl(teacher, host.out_dir, ids) < 0.97 * kl(teacher, width.out_dir, ids)
        config = model_of(host.out_dir).config
        assert (config.hidden_size, config.num_attention_heads, config.head_dim) == (24, 2, 8)

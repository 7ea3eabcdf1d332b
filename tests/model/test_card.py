"""The model card: whole texts, front matter that parses, advice that fits the format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from runner.model import card
from runner.model.card import ModelCard
from runner.model.checkpoint.quantization.scheme import integers
from tests.model.packed import GPTQ, PACK_QUANTIZED

RECIPE = "version: 1\nname: small\nmodel: {source: org/tiny-7b}\n"
QUANTIZED = ModelCard(
    source="org/tiny-7b",
    architecture="LlamaForCausalLM",
    steps=(
        ("prune.wanda", {"data": "calibration", "sparsity": 0.2, "ignore": ["lm_head"], "max_shard_size": "5GB"}),
        ("quantize.gptq", {"bits": 4, "group_size": 128, "symmetric": True, "overrides": {"*.down_proj": {"bits": 8}}}),
    ),
    bytes_before=13_476_000_000,
    bytes_after=3_890_000_000,
    recipe=RECIPE,
    format=PACK_QUANTIZED,
    schemes={integers(8, "channel", True): 1, integers(4, 128, True): 223},
    metrics={"error of a linear module, mean": 0.0123456},
)


def test_the_whole_card() -> None:
    assert (
        card.text(QUANTIZED)
        == """\
---
base_model: org/tiny-7b
base_model_relation: quantized
library_name: transformers
pipeline_tag: text-generation
tags:
- 4-bit
- 8-bit
- compressed-tensors
- prune-wanda
- quantize-gptq
- runner
---

# tiny-7b, quantized to 4 and 8 bits

Made from `org/tiny-7b` (LlamaForCausalLM) by runner, which compresses language models from a recipe.
The recipe is at the end of this page: applying it again gives this checkpoint again.

## What was done

1. `prune.wanda`: data `calibration`, sparsity 0.2, ignore `lm_head`
2. `quantize.gptq`: bits 4, group_size 128, symmetric yes, overrides *.down_proj: bits: 8

- Weights: 13.5 GB before, 3.89 GB after.
- 223 linear modules: 4-bit, symmetric, groups of 128.
- 1 linear module: 8-bit, symmetric, per channel.
- Stored as `pack-quantized`; everything else is as it was.

## Use it

`pip install transformers compressed-tensors`, then

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

To serve it with vLLM:

```sh
vllm serve path/to/this/folder
```

## Measured

| metric | value |
|---|---|
| error of a linear module, mean | 0.012346 |

## Recipe

```yaml
version: 1
name: small
model: {source: org/tiny-7b}
```
"""
    )


@pytest.mark.parametrize("source", ["demo:tiny-llama", "./models/tiny", "/data/my model", "a: b # c"])
def test_only_a_hub_model_is_a_base_model(source: str) -> None:
    text = card.text(replace(QUANTIZED, source=source))
    front = yaml.safe_load(text.split("---")[1])
    assert "base_model" not in front
    assert front["library_name"] == "transformers"
    assert f"Made from `{source}`" in text


def test_a_dense_checkpoint() -> None:
    text = card.text(replace(QUANTIZED, format="", schemes={}, metrics={}))
    assert "# tiny-7b, compressed\n" in text
    assert "`pip install transformers`, then" in text
    assert "vllm serve" in text
    assert "Stored as" not in text
    assert "## Measured" not in text
    assert "base_model_relation" not in text


def test_what_vllm_cannot_serve_is_said() -> None:
    text = card.text(replace(QUANTIZED, schemes={integers(3, 128, True): 2}))
    assert "vllm serve" not in text
    assert "vLLM has no kernels for this way of storing weights." in text


def test_gptq_names_its_packages_and_what_a_cpu_needs() -> None:
    text = card.text(replace(QUANTIZED, format=GPTQ, schemes={integers(4, 128, True): 2}))
    assert "`pip install transformers gptqmodel optimum`, then" in text
    assert "GPTQConfig" not in text
    text = card.text(replace(QUANTIZED, format=GPTQ, schemes={integers(4, "channel", True): 2}))
    assert 'On a CPU, pass `quantization_config=GPTQConfig(bits=4, backend="torch")`' in text


@pytest.mark.parametrize(
    "changes",
    [
        {"schemes": {integers(4, 128, True): 2, integers(8, 128, True): 1}},
        {"schemes": {integers(4, 128, True): 2}, "transposed": True},
    ],
    ids=["mixed schemes", "Conv1D"],
)
def test_gptq_that_only_gptqmodel_loads(changes: dict[str, Any]) -> None:
    text = card.text(replace(QUANTIZED, format=GPTQ, **changes))
    assert 'model = GPTQModel.load("path/to/this/folder")' in text
    assert "AutoModelForCausalLM" not in text


def test_a_recipe_with_fences_of_its_own() -> None:
    text = card.text(replace(QUANTIZED, recipe="description: |\n  ```\n  ````yaml\n"))
    assert text.endswith("`````yaml\ndescription: |\n  ```\n  ````yaml\n`````\n")


RESOLVED = """
version: 1
name: chain
model: {source: "demo:tiny-llama", revision: main}
steps:
- evaluate.perplexity: {data: evaluation}
  id: baseline
- prune.wanda: {data: calibration, sparsity: 0.2}
  id: sparse
- quantize.rtn: {bits: 8, format: pack-quantized}
  id: eight
- quantize.gptq: {bits: 4, format: gptq}
  from: sparse
- prune.magnitude: {sparsity: 0.9}
"""


def test_steps_are_those_that_led_here() -> None:
    recipe = yaml.safe_load(RESOLVED)
    sparse = ("prune.wanda", {"data": "calibration", "sparsity": 0.2})
    assert card.applied_steps(recipe, {"data": "calibration", "sparsity": 0.2}) == [sparse]
    four = {"bits": 4, "format": "gptq"}
    assert card.applied_steps(recipe, four) == [sparse, ("quantize.gptq", four)]
    assert card.applied_steps({}, {}) == []


def test_the_card_of_a_step(tmp_path: Path) -> None:
    for name, size in (("in", 1000), ("out", 300)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b" " * size)
    ctx: Any = SimpleNamespace(
        params={"bits": 4, "format": "gptq"},
        recipe_text=RESOLVED,
        inputs={"checkpoint": SimpleNamespace(path=tmp_path / "in")},
        out_dir=tmp_path / "out",
    )
    module = {"bits": 4, "group_size": 64, "strategy": "channel", "symmetric": False}
    results = [{"layer": i, "modules": {f"l{i}": module | {"error": 0.1 * (i + 1)}}} for i in range(3)]
    text = card.render(ctx, {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, results)
    assert "# tiny-llama, quantized to 4 bits\n" in text
    assert "- Weights: 1 KB before, 300 B after.\n- 3 linear modules: 4-bit, asymmetric, per channel.\n" in text
    assert "| error of a linear module, mean | 0.2 |\n| error of a linear module, worst | 0.3 |" in text
    assert text == card.render(ctx, {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, results)

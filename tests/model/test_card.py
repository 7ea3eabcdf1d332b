"""The model card: whole texts, front matter that parses, advice that fits the format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from runner.contracts.lineage import AppliedStep, Lineage
from runner.model import card
from runner.model.card import ModelCard
from runner.model.checkpoint.quantization.format import Stored
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
    stored={
        Stored(PACK_QUANTIZED, integers(8, "channel", True)): 1,
        Stored(PACK_QUANTIZED, integers(4, 128, True)): 223,
    },
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

vLLM needs a GPU for it: its CPU build has no kernels for 8-bit weights.

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


def test_modules_with_different_bits_are_listed() -> None:
    bits = {f"model.layers.{layer}.mlp.{name}": 4 if layer in (0, 2, 3) else 3 for layer in range(5) for name in "ab"}
    bits |= {"model.layers.1.mlp.a": 8, **{f"model.layers.0.mlp.experts.{n}.up": 2 for n in range(3)}}
    text = card.text(replace(QUANTIZED, bits=bits))
    assert (
        """
## Bits of each module

| bits | modules |
|---|---|
| 2 | `mlp.experts.*.up` of layer 0 |
| 3 | `mlp.a` of layer 4; `mlp.b` of layers 1, 4 |
| 4 | `mlp.a` of layers 0, 2–3; `mlp.b` of layers 0, 2–3 |
| 8 | `mlp.a` of layer 1 |

## Use it
"""
        in text
    )
    assert "Bits of each module" not in card.text(replace(QUANTIZED, bits=dict.fromkeys(bits, 4)))


def test_a_dense_checkpoint() -> None:
    text = card.text(replace(QUANTIZED, stored={}, metrics={}))
    assert "# tiny-7b, compressed\n" in text
    assert "`pip install transformers`, then" in text
    assert "vllm serve" in text
    assert "Stored as" not in text
    assert "## Measured" not in text
    assert "base_model_relation" not in text


def test_what_vllm_cannot_serve_is_said() -> None:
    text = card.text(replace(QUANTIZED, stored={Stored(PACK_QUANTIZED, integers(3, 128, True)): 2}))
    assert "vllm serve" not in text
    assert "vLLM has no kernels for this way of storing weights." in text


def test_gptq_names_its_packages_and_what_a_cpu_needs() -> None:
    text = card.text(replace(QUANTIZED, stored={Stored(GPTQ, integers(4, 128, True)): 2}))
    assert "`pip install transformers gptqmodel optimum`, then" in text
    assert "GPTQConfig" not in text
    text = card.text(replace(QUANTIZED, stored={Stored(GPTQ, integers(4, "channel", True)): 2}))
    assert 'On a CPU, pass `quantization_config=GPTQConfig(bits=4, backend="torch")`' in text


@pytest.mark.parametrize(
    "changes",
    [
        {"stored": {Stored(GPTQ, integers(4, 128, True)): 2, Stored(GPTQ, integers(8, 128, True)): 1}},
        {"stored": {Stored(GPTQ, integers(4, 128, True)): 2}, "transposed": True},
    ],
    ids=["mixed schemes", "Conv1D"],
)
def test_gptq_that_only_gptqmodel_loads(changes: dict[str, Any]) -> None:
    text = card.text(replace(QUANTIZED, **changes))
    assert 'model = GPTQModel.load("path/to/this/folder")' in text
    assert "AutoModelForCausalLM" not in text


def test_a_recipe_with_fences_of_its_own() -> None:
    text = card.text(replace(QUANTIZED, recipe="description: |\n  ```\n  ````yaml\n"))
    assert text.endswith("`````yaml\ndescription: |\n  ```\n  ````yaml\n`````\n")


def test_the_card_of_a_folder(tmp_path: Path) -> None:
    """Sizes are those of the files, metrics those of the modules, the rest is what the planner says."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    for name, rows in (("in", 250), ("out", 75)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.zeros(rows, 1)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("in", "out")]
    steps = (
        AppliedStep("sparse", "prune.wanda", {"data": "calibration", "sparsity": 0.2}),
        AppliedStep("sparser", "prune.wanda", {"data": "calibration", "sparsity": 0.4}),
    )
    origin = card.Origin(tmp_path / "in", Lineage("demo:tiny-llama", steps), RECIPE)
    results = [{"layer": i, "modules": {f"l{i}": {"error": 0.1 * (i + 1)}}} for i in range(3)]
    text = card.render(origin, tmp_path / "out", results)
    assert (
        text.partition("# tiny-llama")[2].partition("## Use it")[0]
        == f"""\
, compressed

Made from `demo:tiny-llama` (LlamaForCausalLM) by runner, which compresses language models from a recipe.
The recipe is at the end of this page: applying it again gives this checkpoint again.

## What was done

1. `prune.wanda`: data `calibration`, sparsity 0.2
2. `prune.wanda`: data `calibration`, sparsity 0.4

- Weights: {sizes[0] / 1000:.3g} KB before, {sizes[1]} B after.

"""
    )
    assert "| error of a linear module, mean | 0.2 |\n| error of a linear module, worst | 0.3 |" in text
    assert text == card.render(origin, tmp_path / "out", results)

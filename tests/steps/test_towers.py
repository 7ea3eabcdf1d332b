"""Language models with a tower for images: the language model is compressed, all else keeps its bytes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from runner import wording
from runner.contracts.sites import Site
from runner.errors import RecipeError
from runner.model.architecture import inspect, probe, supported
from runner.model.checkpoint.headers import model_config
from runner.model.checkpoint.placed_part import rows_of
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.describe import describe
from runner.plan.resolve_inputs import described
from runner.steps import architectures
from runner.steps.kinds import find
from tests import sweep, towers
from tests.host import Host

IDS = torch.randint(4, 118, (24, 24), generator=torch.Generator().manual_seed(1))
# Attention over both directions of an image, positions in three dimensions, sound. All others nightly.
FEW = ("gemma3", "qwen3_vl", "voxtral")
ALL = [name if name in FEW else pytest.param(name, marks=pytest.mark.nightly) for name in towers.TOWERS]
# Experts that transformers cannot load packed or cannot be followed, tensors that it makes others of on loading.
REFUSED = {
    "aria": "R602", "llama4": "R601", "minimax_m3_vl": "R408", "qianfan_ocr": "R413", "qwen3_vl_moe": "R602",
}  # fmt: skip

# compressed-tensors 0.20 hands the class of transformers that holds features of images on as a plain dict.
NO_GENERATE = frozenset({"llava_next"})


def loaded(folder: Path) -> Any:
    loads = getattr(transformers, supported.auto_class(model_config(folder).model_type))
    return loads.from_pretrained(folder, dtype=torch.float32).eval()


def answer(model: Any, name: str) -> list[int]:
    """The greedy tokens by `generate`, or by forwards of all tokens where it fails on packed weights."""
    asked = towers.question(name)
    if name not in NO_GENERATE:
        with torch.no_grad():
            out = model.generate(**asked, max_new_tokens=12, do_sample=False, eos_token_id=None)
        found: list[int] = out[0].tolist()
        return found
    for _ in range(12):
        following = {"input_ids": logits(model, asked).argmax(), "attention_mask": torch.tensor(1)}
        asked |= {key: torch.cat([asked[key], value.view(1, 1)], 1) for key, value in following.items()}
    return list(asked["input_ids"][0].tolist())


def logits(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits of the last token of a question."""
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits[0, -1]
    return found


def dequantized(model: Path, out: Path, folder: Path, sites: Sequence[Site]) -> Any:
    """The model of a checkpoint whose `sites` have the weights that `out` stores packed."""
    tensors = load_file(model / "model.safetensors")
    with CheckpointReader(out) as reader:
        for site in sites:
            matrix = tensors[site.tensor] if site.index is None else tensors[site.tensor][site.index]
            rows_of(matrix, site).copy_(reader.read_module_weight(site.name))
    shutil.copytree(model, folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return loaded(folder)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["quantize.rtn", "quantize.gptq"])
def test_a_question_is_answered_as_by_the_dequantized_weights(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_answer", describe)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = towers.save(tmp_path / "model", name)
    ids = None if kind == "quantize.rtn" else IDS
    if name in REFUSED:
        with pytest.raises(RecipeError) as caught:
            sweep.run(kind, folder, tmp_path / kind, ids, bits=4, group_size=8)
        assert [each.code for each in caught.value.diagnostics] == [REFUSED[name]]
        return
    sweep.run(kind, folder, tmp_path / kind, ids, bits=4, group_size=8)
    out = tmp_path / kind / "out"
    sites = described(inspect.facts(folder, "m"), folder).sites
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    packed = {tensor.removesuffix(".weight_packed") for tensor in after if tensor.endswith(".weight_packed")}
    assert packed == {site.name for site in sites}
    changed = {site.tensor for site in sites}
    assert len(before.keys() - changed) > 20
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in before.keys() - changed)
    dense, original = dequantized(folder, out, tmp_path / "dense", sites), loaded(folder)
    asked = towers.question(name)
    first = logits(original, asked)
    assert not torch.allclose(first, logits(original, towers.unlike(name)), rtol=1e-2), "the image is not seen"
    result = loaded(out)
    assert answer(result, name) == answer(dense, name)
    torch.testing.assert_close(logits(result, asked), logits(dense, asked), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, logits(dense, asked), rtol=1e-2)


@pytest.mark.parametrize("name", ALL)
def test_text_is_measured_as_transformers_measures_it(tmp_path: Path, name: str) -> None:
    folder = towers.save(tmp_path / "model", name)
    host = Host(tmp_path / "p", "evaluate.perplexity", folder, IDS)
    measured = find("evaluate.perplexity").run(host).metrics["loss"]
    with torch.no_grad():
        logits = loaded(folder)(input_ids=IDS).logits[:, :-1].flatten(0, 1)
    assert measured == pytest.approx(float(torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten())), rel=1e-5)


def test_kinds_that_were_not_tried(tmp_path: Path) -> None:
    folder = towers.save(tmp_path / "model", "llava")
    facts = described(inspect.facts(folder, "m"), folder)
    refusal = architectures.refuse("recover.lora", facts)
    assert refusal is not None
    assert (refusal.code, refusal.message, refusal.help) == (
        "R443",
        "`m` (`llava`) has towers for images or sound, with which `recover.lora` has not been tried",
        f"kinds that work are {wording.ticked(sorted(architectures._LAYERWISE))}",
    )


def test_a_tower_that_is_not_there(tmp_path: Path) -> None:
    """config.json describes a tower of which the checkpoint holds nothing."""
    folder = towers.save(tmp_path / "model", "llava")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "vision" not in name}, folder / "model.safetensors")
    with pytest.raises(RecipeError) as caught:
        described(inspect.facts(folder, "m"), folder)
    first = caught.value.diagnostics[0]
    assert (first.code, first.help) == ("R406", "the checkpoint is incomplete or was edited; download it again")
    assert first.message.startswith("tensor `model.vision_tower.")
    assert first.message.endswith("` is missing from `m`")

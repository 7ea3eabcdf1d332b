"""Language models with a tower for images: the language model is compressed, all else keeps its bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner import wording
from runner.errors import RecipeError
from runner.model.architecture import inspect
from runner.model.architecture.sites import in_tower
from runner.model.checkpoint.reader import CheckpointReader
from runner.plan.resolve_inputs import described
from runner.steps import architectures
from runner.steps.kinds import find
from tests import towers
from tests.host import Host

IDS = torch.randint(4, 118, (24, 24), generator=torch.Generator().manual_seed(1))


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def made(folder: Path, kind: str, model: Path, ids: torch.Tensor | None = None, **params: Any) -> Path:
    """Run a kind as the planner lets it run."""
    facts = described(inspect.facts(model, "m"), model)
    host = Host(folder, kind, model, ids, **params)
    known = replace(host.inputs["checkpoint"], sites=tuple(site.name for site in facts.sites), linears=facts.linears)
    host.inputs = {"checkpoint": known}
    find(kind).run(host)
    return host.out_dir


def answer(model: Any, name: str) -> list[int]:
    with torch.no_grad():
        out = model.generate(**towers.question(name), max_new_tokens=12, do_sample=False, eos_token_id=None)
    found: list[int] = out[0].tolist()
    return found


def logits(model: Any, name: str, **changes: torch.Tensor) -> torch.Tensor:
    """The logits of the last token of the question."""
    with torch.no_grad():
        found: torch.Tensor = model(**{**towers.question(name), **changes}).logits[0, -1]
    return found


@pytest.mark.parametrize("name", towers.CONFIGS)
@pytest.mark.parametrize("kind", ["quantize.rtn", "quantize.gptq"])
def test_an_image_question_is_answered_as_by_the_dequantized_weights(tmp_path: Path, name: str, kind: str) -> None:
    folder = towers.save(tmp_path / "model", name)
    out = made(tmp_path / kind, kind, folder, None if kind == "quantize.rtn" else IDS, bits=4, group_size=8)
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    kept = [tensor for tensor in before if in_tower(tensor)]
    assert len(kept) > 40
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in kept)
    packed = [tensor for tensor in after if tensor.endswith("weight_packed")]
    assert len(packed) == 4 * 7
    assert not any(in_tower(tensor) for tensor in packed)
    dense = loaded(folder)
    original = logits(dense, name)
    pixels = towers.question(name)["pixel_values"]
    assert not torch.allclose(original, logits(dense, name, pixel_values=-pixels), rtol=1e-2), "the image is not seen"
    names = {tensor: parameter for parameter, tensor in _stored(dense, folder).items()}
    with CheckpointReader(out) as reader:
        for tensor in packed:
            module = tensor.removesuffix(".weight_packed")
            weight = reader.read_module_weight(module)
            dense.get_parameter(names[f"{module}.weight"]).data.copy_(weight)
    result = loaded(out)
    assert answer(result, name) == answer(dense, name)
    torch.testing.assert_close(logits(result, name), logits(dense, name), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(original, logits(dense, name), rtol=1e-2)


def _stored(model: Any, folder: Path) -> dict[str, str]:
    from runner.model.layerwise.tensor_names import name_map

    names = name_map(model, load_file(folder / "model.safetensors"))
    return {name: stored[0] for name, stored in names.stored.items()}


@pytest.mark.parametrize("name", towers.CONFIGS)
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
    from safetensors.torch import save_file

    folder = towers.save(tmp_path / "model", "llava")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "vision" not in name}, folder / "model.safetensors")
    with pytest.raises(RecipeError) as caught:
        described(inspect.facts(folder, "m"), folder)
    first = caught.value.diagnostics[0]
    assert (first.code, first.help) == ("R406", "the checkpoint is incomplete or was edited; download it again")
    assert first.message.startswith("tensor `model.vision_tower.")
    assert first.message.endswith("` is missing from `m`")

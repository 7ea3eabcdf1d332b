"""Calibration on images: layers see what transformers' own forward gives them, and towers keep their bytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import DataFacts, Inputs
from runner.data.image_records import image_records
from runner.data.processed_images import ImageSamples
from runner.errors import RecipeError
from runner.model.architecture import inspect, probe
from runner.model.layerwise import engine
from runner.model.layerwise.calibrated import Calibrated
from runner.model.layerwise.describe import describe
from runner.model.layerwise.method import Linear, Method, Statistics, Transformed
from runner.model.layerwise.stream_run import SILENT, StreamInputs, StreamRun
from runner.model.layerwise.streamed_model import StreamedModel
from runner.plan.resolve_inputs import described
from runner.steps import architectures
from runner.steps.kinds import find
from tests import image_models, towers
from tests.host import Host
from tests.steps.test_towers import answer, dequantized, loaded
from tests.sweep import MACHINE

pytest.importorskip("PIL")


NAMES = [
    "gemma3",
    pytest.param(
        "qwen2_5_vl",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("torchvision") is None, reason="its processor needs torchvision"
        ),
    ),
]


class ImageHost(Host):
    """A Context whose data has images."""

    def __init__(self, folder: Path, kind: str, checkpoint: Path, samples: ImageSamples, **params: Any) -> None:
        super().__init__(folder, kind, checkpoint, samples.ids, **params)
        facts = described(inspect.facts(checkpoint, "m"), checkpoint)
        known = replace(self.inputs["checkpoint"], sites=tuple(s.name for s in facts.sites), linears=facts.linears)
        self.inputs = {"checkpoint": known}
        self.samples = samples


def samples_of(model: Path, folder: Path) -> ImageSamples:
    spec = image_models.photos(folder)
    return ImageSamples(model, image_records(spec, [Path(spec.source)]), spec.sequence_length)


def second_moments(model: Any, samples: ImageSamples, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """2 XᵀX / tokens of the inputs of modules, by transformers' own forward of every record; by stored name."""
    sums = {name: torch.zeros((), dtype=torch.float64) for name in names}
    tokens = 0
    handles = []
    for stored, name in names.items():

        def add(module: Any, inputs: tuple[torch.Tensor, ...], stored: str = stored) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[stored] = sums[stored] + 2 * x.T @ x

        handles.append(model.get_submodule(name).register_forward_pre_hook(add))
    with torch.no_grad():
        for row in range(len(samples)):
            asked = samples.inputs(row)
            tokens += asked["input_ids"].shape[1]
            model(**asked, attention_mask=torch.ones_like(asked["input_ids"]))
    for handle in handles:
        handle.remove()
    return {name: each / tokens for name, each in sums.items()}


@pytest.mark.parametrize("name", NAMES)
def test_layers_see_what_transformers_gives_them(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_answer", describe)
    folder = image_models.save(tmp_path / "model", name)
    samples = samples_of(folder, tmp_path / "photos")
    assert len(set(samples.lengths)) > 2
    facts = described(inspect.facts(folder, "m"), folder)
    seen: dict[str, torch.Tensor] = {}

    def keep(linear: Linear, statistics: Statistics, params: Mapping[str, Any]) -> Transformed:
        seen.update(dict.fromkeys(linear.names, statistics.of("hessian")))
        return Transformed(weight=linear.weight)

    method = Method(keep, {site.name: {} for site in facts.sites}, statistics="hessian")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    run = StreamRun(scratch, tmp_path / "progress.json", SILENT)
    inputs = StreamInputs(folder, facts, ids=samples.ids, images=samples)
    engine.transform(inputs, method, lambda index, changed: {"layer": index, "modules": {}}, run)
    expected = second_moments(loaded(folder), samples, Calibrated(inputs, method).model_names())
    assert seen.keys() == expected.keys() == {site.name for site in facts.sites}
    for site, found in seen.items():
        torch.testing.assert_close(found.double(), expected[site], rtol=1e-4, atol=1e-5)
    assert not list(scratch.glob("arguments-*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_question_is_answered_as_by_the_dequantized_weights(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_answer", describe)
    folder = image_models.save(tmp_path / "model", name)
    samples = samples_of(folder, tmp_path / "photos")
    host = ImageHost(tmp_path / "step", "quantize.gptq", folder, samples, bits=4, group_size=8)
    find("quantize.gptq").run(host)
    before, after = load_file(folder / "model.safetensors"), load_file(host.out_dir / "model.safetensors")
    sites = described(inspect.facts(folder, "m"), folder).sites
    changed = {site.tensor for site in sites}
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in before.keys() - changed)
    assert not changed & after.keys()
    dense = dequantized(folder, host.out_dir, tmp_path / "dense", sites)
    assert answer(loaded(host.out_dir), name) == answer(dense, name)


def test_an_interrupted_step_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.errors import Interrupted

    monkeypatch.setattr(probe, "_answer", describe)
    folder = image_models.save(tmp_path / "model", "gemma3")
    samples = samples_of(folder, tmp_path / "photos")

    def run(name: str, **params: Any) -> bytes:
        host = ImageHost(tmp_path / name, "quantize.gptq", folder, samples, bits=4, group_size=8, **params)
        find("quantize.gptq").run(host)
        return (host.out_dir / "model.safetensors").read_bytes()

    straight = run("straight")
    with pytest.raises(Interrupted):
        run("stopped", stop_after=2)
    assert run("stopped") == straight


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images beyond the window, a processor that takes none, a kind or a model that reads text alone."""
    monkeypatch.setattr(probe, "_answer", describe)
    folder = image_models.save(tmp_path / "model", "gemma3")
    spec = image_models.photos(tmp_path / "photos")
    records = image_records(spec, [Path(spec.source)])
    with pytest.raises(RecipeError) as caught:
        ImageSamples(folder, records, 6)
    [found] = caught.value.diagnostics
    where = f"`{spec.source}` line 1"
    assert (found.code, found.message) == ("R664", f"{where}: its images end at token 7, beyond `sequence_length` 6")
    facts = described(inspect.facts(folder, "m"), folder)
    data = {"data": DataFacts("photos", 6, 48, 0, "0" * 64, has_images=True)}

    def refused(kind: str, facts: CheckpointFacts) -> tuple[str, str]:
        complaint = architectures.refuse_images(kind, Inputs(facts, {}, data, MACHINE))
        return ("", "") if complaint is None else (complaint.code, complaint.message)

    assert refused("quantize.gptq", facts) == ("", "")
    text = "`evaluate.perplexity` reads text alone; the data entry `photos` has images"
    assert refused("evaluate.perplexity", facts) == ("R665", text)
    (folder / "processor_config.json").unlink()
    assert refused("quantize.gptq", facts)[0] == "R666"
    reads_text = replace(facts, config=ModelConfig.of(facts.config.raw["text_config"]))
    message = "the data entry `photos` has images; `m` (`gemma3_text`) reads text"
    assert refused("quantize.gptq", reads_text) == ("R666", message)


def test_work_between_layers_is_refused(tmp_path: Path) -> None:
    """Qwen3-VL adds features of images to the hidden states between its layers."""
    folder = towers.save(tmp_path / "model", "qwen3_vl")
    streamed = StreamedModel(folder)
    streamed.load_rest(towers=True)
    streamed.calls(torch.tensor([[5, 9]]))
    asked = {key: value for key, value in towers.question("qwen3_vl").items() if key != "attention_mask"}
    with pytest.raises(RecipeError) as caught, torch.no_grad():
        streamed.calls_with_images(asked)
    [found] = caught.value.diagnostics
    assert (found.code, found.help) == ("R667", "calibrate with text alone: leave `images` out of the data entry")
    assert "changes the hidden states between its decoder layers 0 and 1" in found.message

"""Every scheme by rounding and by GPTQ, on the stream: what transformers with compressed-tensors loads and computes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contracts.step_kind import Inputs
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.quantization.presets import PRESETS, short_layout
from runner.model.layerwise.streamed_model import StreamedModel
from runner.plan.tensor_account import account
from runner.recipe.schema.load import defaults
from runner.steps import layerwise
from runner.steps.evaluate import perplexity
from runner.steps.quantize import gptq, rtn
from runner.steps.targets import changes
from tests.host import Host
from tests.model.checkpoint.formats.checkpoints import load
from tests.tiny import save

IDS = torch.randint(0, 96, (6, 24), generator=torch.Generator().manual_seed(5))
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def sizes(scheme: str) -> dict[str, Any]:
    """A model's sizes that a scheme can hold: blocks of 128 rows must not reach from the keys into the values."""
    return SIZES | ({"num_key_value_heads": 4} if scheme == "fp8_block" else {})


def quantized(folder: Path, kind: Any, source: Path, **params: Any) -> Path:
    """What a step of `kind` makes of a checkpoint."""
    host = Host(folder, kind.method.kind, source, IDS if kind is gptq else None, **params)
    assert layerwise.check(host.params, inputs(source)) == []
    kind.run(host)
    forecast = layerwise.outcome(host.params, inputs(source))
    written = facts(host.out_dir, "written")
    assert {n: (t.dtype, t.shape) for n, t in forecast.tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in written.tensors.items()
    }
    return host.out_dir


def inputs(source: Path) -> Inputs:
    return Inputs(facts(source, "source"), {}, {}, machine=None)  # type: ignore[arg-type]


def measured(folder: Path, scratch: Path) -> float:
    """`evaluate.perplexity` of a checkpoint."""
    return perplexity.run(Host(scratch, "evaluate.perplexity", folder, IDS)).metrics["perplexity"]


def reference(folder: Path) -> float:
    """The same by transformers, which loads the checkpoint with compressed-tensors."""
    with torch.no_grad():
        logits = load(folder)(IDS).logits.float()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    return math.exp(float(loss))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("scheme", sorted(PRESETS))
def test_transformers_computes_the_perplexity_that_is_reported(scheme: str, name: str, tmp_path: Path) -> None:
    # Widths that groups of 128 divide.
    changes = sizes(scheme) if name == "llama" else sizes(scheme) | {"head_dim": 32}
    source = save(tmp_path / "dense", name, **changes)
    made = quantized(tmp_path / "made", rtn, source, scheme=scheme)
    ours = measured(made, tmp_path / "scratch")
    assert ours == pytest.approx(reference(made), rel=2e-3)
    assert abs(ours - measured(source, tmp_path / "dense-scratch")) > 1e-6


def test_a_short_last_block_of_rows_is_read_alike(tmp_path: Path) -> None:
    """k and v have 32 rows, a quarter of a block."""
    source = save(tmp_path / "dense", **SIZES | {"num_key_value_heads": 1, "num_hidden_layers": 1})
    host = Host(tmp_path / "made", "quantize.rtn", source, scheme="fp8_block")
    rtn.run(host)  # `plan` refuses it for vLLM's sake
    with torch.no_grad():
        assert torch.equal(logits(host.out_dir, rounds=True), load(host.out_dir)(IDS).logits)


@pytest.mark.parametrize("scheme", ["fp8", "fp8_block", "w8a8", "w4a8"])
def test_inputs_are_rounded_as_compressed_tensors_rounds_them(scheme: str, tmp_path: Path) -> None:
    """Logits are far closer to its forward than they would be without rounding."""
    made = quantized(tmp_path / "made", rtn, save(tmp_path / "dense", **sizes(scheme)), scheme=scheme)
    with torch.no_grad():
        theirs = load(made)(IDS).logits
    ours, unrounded = logits(made, rounds=True), logits(made, rounds=False)
    assert (ours - theirs).norm() < 0.1 * (unrounded - theirs).norm()


def logits(folder: Path, rounds: bool) -> torch.Tensor:
    """The streamed forward, with and without the hooks that round inputs."""
    streamed = StreamedModel(folder)
    streamed.load_rest()
    with torch.no_grad():
        for index in range(len(streamed)):
            streamed.load(index)
            if not rounds:
                for handle in streamed._rounding.pop(index):
                    handle.remove()
        found: torch.Tensor = streamed.model(IDS, use_cache=False).logits.float()
    return found


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "fp8", "fp8_block"])
def test_gptq_loses_less_than_rounding_in_every_scheme(scheme: str, tmp_path: Path) -> None:
    source = save(tmp_path / "dense", **sizes(scheme))
    rounded = quantized(tmp_path / "rounded", rtn, source, scheme=scheme)
    solved = quantized(tmp_path / "solved", gptq, source, scheme=scheme)
    assert measured(solved, tmp_path / "scratch") == pytest.approx(reference(solved), rel=2e-3)
    with torch.no_grad():
        dense = load(source)(IDS).logits
    lost = {folder: (logits(folder, rounds=False) - dense).square().mean() for folder in (rounded, solved)}
    assert lost[solved] < lost[rounded]


@pytest.mark.parametrize("kind", ["quantize.rtn", "quantize.gptq"])
@pytest.mark.parametrize("scheme", sorted(PRESETS))
def test_the_short_form_follows_the_scheme(scheme: str, kind: str) -> None:
    preset = PRESETS[scheme]
    params = defaults(kind, {"scheme": scheme})
    assert (params["bits"], params["group_size"]) == (preset.bits, short_layout(preset.group_size))
    format = {"w8a8": "int-quantized", "fp8": "float-quantized", "fp8_block": "float-quantized"}
    assert params["format"] == format.get(scheme, "pack-quantized")


@pytest.mark.parametrize("scheme", sorted(PRESETS))
def test_the_account_explains_every_tensor(scheme: str, tmp_path: Path) -> None:
    """Also where the codes have the name that the weight had."""
    before = inputs(save(tmp_path, **SIZES))
    params = defaults("quantize.rtn", {"scheme": scheme})
    changed = changes(params, before.checkpoint)
    found, complaints = account(before.checkpoint, layerwise.outcome(params, before), changed)
    assert complaints == []
    assert {entry.name for entry in found.entries if entry.fate == "changed"} == changed
    assert all(entry.reason.startswith("stored as weight") for entry in found.entries if entry.fate == "changed")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scheme": "fp8", "bits": 4}, "`bits: 4` contradicts `scheme: fp8`, which has 8"),
        (
            {"scheme": "fp8_block", "group_size": 64},
            "`group_size: 64` contradicts `scheme: fp8_block`, which has its own",
        ),
        (
            {"scheme": "fp8", "symmetric": False},
            "`symmetric: false` contradicts `scheme: fp8`, whose weights are floats around zero",
        ),
    ],
)
def test_a_scheme_and_a_short_form_that_contradict_it(params: dict[str, Any], message: str, tmp_path: Path) -> None:
    (found,) = layerwise.check(defaults("quantize.rtn", params), inputs(save(tmp_path, **SIZES)))
    assert (found.code, found.message, found.help) == ("R422", message, "leave one of them out")


def test_a_format_that_cannot_hold_a_scheme_names_one_that_can(tmp_path: Path) -> None:
    source = save(tmp_path, **SIZES | {"num_hidden_layers": 1})
    params = defaults("quantize.rtn", {"scheme": "fp8", "format": "pack-quantized"})
    (found,) = layerwise.check(params, inputs(source))
    assert found.code == "R411"
    assert found.help == "use a scheme of integers, or `format: float-quantized`"
    problem = "is to be stored as float8_e4m3, per channel; `pack-quantized` holds integers"
    assert found.message.splitlines()[1] == f"    `model.layers.0.mlp.down_proj` {problem}"


def test_groups_of_an_integer_scheme_may_be_chosen(tmp_path: Path) -> None:
    made = quantized(tmp_path / "made", rtn, save(tmp_path / "dense", **SIZES), scheme="w4a8", group_size=32)
    group = json.loads((made / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert group["weights"]["group_size"] == 32
    assert group["input_activations"]["strategy"] == "token"

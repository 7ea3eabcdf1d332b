"""Every scheme by rounding and by GPTQ, on the stream: what transformers with compressed-tensors loads and computes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contracts.step_kind import Inputs
from runner.errors import Interrupted
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.quantization.presets import PRESETS, short_layout
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.streamed_model import StreamedModel
from runner.plan.tensor_account import account
from runner.recipe.schema.load import defaults
from runner.steps import layerwise
from runner.steps.evaluate import perplexity
from runner.steps.quantize import gptq, rtn
from runner.steps.targets import changes
from tests.host import Host
from tests.model.checkpoint.formats.checkpoints import load, load_as_computed
from tests.tiny import save

IDS = torch.randint(0, 96, (6, 24), generator=torch.Generator().manual_seed(5))
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


STATIC = {f"{name} static": {"scheme": name, "activations": "static"} for name in ("fp8", "w8a8")}
CASES: dict[str, dict[str, Any]] = {name: {"scheme": name} for name in PRESETS} | STATIC
SMALL_FLOATS = ("nvfp4", "mxfp4", "mxfp8")


def sizes(scheme: str) -> dict[str, Any]:
    """A model's sizes that a scheme can hold: blocks of 128 rows must not reach from the keys into the values."""
    return SIZES | ({"num_key_value_heads": 4} if scheme == "fp8_block" else {})


def dense(folder: Path, scheme: str, name: str = "llama", **changes: Any) -> Path:
    """A model that a scheme can hold; compressed-tensors unpacks small floats to bf16."""
    dtype = torch.bfloat16 if scheme.startswith(SMALL_FLOATS) else torch.float32
    width = {} if name == "llama" else {"head_dim": 32}  # that groups of 128 divide
    return save(folder, name, dtype, **sizes(scheme) | width | changes)


def quantized(folder: Path, kind: Any, source: Path, **params: Any) -> Path:
    """What a step of `kind` makes of a checkpoint."""
    wants = kind.method.wants(defaults(kind.method.kind, params)) != "none"
    host = Host(folder, kind.method.kind, source, IDS if wants else None, **params)
    assert [each for each in kind.check(host.params, inputs(source)) if each.severity == "error"] == []
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
        logits = load_as_computed(folder, IDS)(IDS).logits.float()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    return math.exp(float(loss))


def assert_served_as_reported(case: str, name: str, kind: Any, tmp_path: Path) -> None:
    if case in ("nf4", "fp4"):
        pytest.importorskip("bitsandbytes")
    source = dense(tmp_path / "dense", case, name)
    made = quantized(tmp_path / "made", kind, source, **CASES[case])
    ours = measured(made, tmp_path / "scratch")
    # On processors with AVX-512 BF16 bitsandbytes multiplies equal weights in bf16, whatever type it is asked for.
    assert ours == pytest.approx(reference(made), rel=1e-2 if case in ("nf4", "fp4") else 2e-3)
    assert abs(ours - measured(source, tmp_path / "dense-scratch")) > 1e-6


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("qwen3", "gemma2"))]
)
@pytest.mark.parametrize("case", sorted(CASES))
def test_transformers_computes_the_perplexity_that_is_reported(case: str, name: str, tmp_path: Path) -> None:
    assert_served_as_reported(case, name, rtn, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_and_what_gptq_makes(case: str, name: str, tmp_path: Path) -> None:
    assert_served_as_reported(case, name, gptq, tmp_path)


@pytest.mark.parametrize("scheme", ["nvfp4a16", "mxfp4a16", "mxfp8a16"])
def test_small_floats_of_a_float32_model_load_in_its_type(scheme: str, tmp_path: Path) -> None:
    made = quantized(tmp_path / "made", rtn, save(tmp_path / "dense", **SIZES), scheme=scheme)
    assert measured(made, tmp_path / "scratch") == pytest.approx(reference(made), rel=2e-3)


def test_a_short_last_block_of_rows_is_read_alike(tmp_path: Path) -> None:
    """k and v have 32 rows, a quarter of a block."""
    source = save(tmp_path / "dense", **SIZES | {"num_key_value_heads": 1, "num_hidden_layers": 1})
    host = Host(tmp_path / "made", "quantize.rtn", source, scheme="fp8_block")
    rtn.run(host)  # `plan` refuses it for vLLM's sake
    with torch.no_grad():
        assert torch.equal(logits(host.out_dir, rounds=True), load_as_computed(host.out_dir, IDS)(IDS).logits)


@pytest.mark.parametrize(
    "case", ["fp8", "fp8_block", "w8a8", "w4a8", "nvfp4", "mxfp4", "mxfp8", "fp8 static", "w8a8 static"]
)
def test_inputs_are_rounded_as_compressed_tensors_rounds_them(case: str, tmp_path: Path) -> None:
    """Logits are far closer to its forward than they would be without rounding."""
    made = quantized(tmp_path / "made", rtn, dense(tmp_path / "dense", case), **CASES[case])
    with torch.no_grad():
        theirs = load_as_computed(made, IDS)(IDS).logits
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


@pytest.mark.parametrize("case", ["w8a8", "w4a8", "fp8", "fp8_block", "nvfp4", "mxfp4", "mxfp8", "fp8 static"])
def test_gptq_loses_less_than_rounding_in_every_scheme(case: str, tmp_path: Path) -> None:
    source = dense(tmp_path / "dense", case)
    rounded = quantized(tmp_path / "rounded", rtn, source, **CASES[case])
    solved = quantized(tmp_path / "solved", gptq, source, **CASES[case])
    assert measured(solved, tmp_path / "scratch") == pytest.approx(reference(solved), rel=2e-3)
    with torch.no_grad():
        whole = load_as_computed(source, IDS)(IDS).logits.float()
    lost = {folder: (logits(folder, rounds=False) - whole).square().mean() for folder in (rounded, solved)}
    assert lost[solved] < lost[rounded]


@pytest.mark.parametrize("kind", ["quantize.rtn", "quantize.gptq"])
@pytest.mark.parametrize("scheme", sorted(PRESETS))
def test_the_short_form_follows_the_scheme(scheme: str, kind: str) -> None:
    preset = PRESETS[scheme]
    params = defaults(kind, {"scheme": scheme})
    assert (params["bits"], params["group_size"]) == (preset.bits, short_layout(preset.group_size))
    format = {"w8a8": "int-quantized", "fp8": "float-quantized", "fp8_block": "float-quantized"}
    format |= {
        name: f"{name.removesuffix('a16')}-pack-quantized" for name in PRESETS if name.startswith(("nvfp4", "mxfp4"))
    }
    format |= {"mxfp8": "mxfp8-quantized", "mxfp8a16": "mxfp8-quantized", "nf4": "bitsandbytes", "fp4": "bitsandbytes"}
    assert params["format"] == format.get(scheme, "pack-quantized")
    (own,) = defaults(kind, {"overrides": {"q_proj": {"scheme": scheme}}})["overrides"].values()
    assert {key: own[key] for key in ("bits", "group_size", "format")} == {
        key: params[key] for key in ("bits", "group_size", "format")
    }


@pytest.mark.parametrize("scheme", sorted(PRESETS))
def test_the_account_explains_every_tensor(scheme: str, tmp_path: Path) -> None:
    """Also where the codes have the name that the weight had."""
    before = inputs(save(tmp_path, **SIZES))
    params = defaults("quantize.rtn", {"scheme": scheme})
    changed = changes(params, before.checkpoint)
    found, complaints = account(before.checkpoint, layerwise.outcome(params, before), changed)
    assert complaints == []
    assert {entry.name for entry in found.entries if entry.fate == "changed"} == changed
    assert all("weight" in entry.reason for entry in found.entries if entry.fate == "changed")


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
        (
            {"scheme": "fp8_block", "activations": "static"},
            "`activations: static` contradicts `scheme: fp8_block`; `fp8` and `w8a8` can have it",
        ),
        (
            {"activations": "static"},
            "`activations: static` needs a scheme that rounds inputs: `fp8` and `w8a8`",
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
    assert found.help == "use a scheme of integers, or `format: float-quantized` or `format: modelopt`"
    problem = "is to be stored as float8_e4m3, per channel; `pack-quantized` holds integers"
    assert found.message.splitlines()[1] == f"    `model.layers.0.mlp.down_proj` {problem}"


def test_groups_of_an_integer_scheme_may_be_chosen(tmp_path: Path) -> None:
    made = quantized(tmp_path / "made", rtn, save(tmp_path / "dense", **SIZES), scheme="w4a8", group_size=32)
    group = json.loads((made / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert group["weights"]["group_size"] == 32
    assert group["input_activations"]["strategy"] == "token"


def test_scales_of_inputs_come_from_data_alone(tmp_path: Path) -> None:
    source = inputs(save(tmp_path, dtype=torch.bfloat16, **SIZES))
    for params, whose in (
        ({"scheme": "nvfp4"}, PRESETS["nvfp4"].describe()),
        (
            {"scheme": "fp8", "activations": "static"},
            "float8_e4m3, per channel; inputs with calibrated scales to float8_e4m3, per tensor",
        ),
    ):
        (found,) = rtn.check(defaults("quantize.rtn", params), source)
        assert (found.code, found.path) == ("R612", ("scheme",))
        assert found.message == (
            f"the inputs of a scheme have a scale that only data gives, and the step names none: {whose}"
        )
        assert found.help == "name calibration text with `data`, or choose a scheme whose inputs need no calibration"
        assert rtn.check(defaults("quantize.rtn", {**params, "data": "calibration"}), source) == []
    (found,) = rtn.check(defaults("quantize.rtn", {"grid": "weighted_mse"}), source)
    assert (found.code, found.message, found.help) == (
        "R612", "`grid: weighted_mse` weighs columns by their inputs on calibration text, and the step names none",
        "name calibration text with `data`, or use `grid: mse`",
    )  # fmt: skip
    (found,) = rtn.check(defaults("quantize.rtn", {"scheme": "fp8", "data": "calibration"}), source)
    assert (found.code, found.message, found.help) == (
        "R418",
        "`data` has no effect: no scheme of this step has calibrated inputs, and `grid` weighs no columns",
        "leave it out",
    )


def test_a_static_scale_is_the_largest_input_of_the_calibration_text(tmp_path: Path) -> None:
    """The first layer's queries, keys and values get the normed embeddings, which nothing has changed yet."""
    source = save(tmp_path / "dense", **SIZES | {"num_hidden_layers": 1})
    made = quantized(tmp_path / "made", rtn, source, scheme="fp8", activations="static")
    seen: list[torch.Tensor] = []
    model = load(source)
    model.get_submodule("model.layers.0.self_attn.q_proj").register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    with torch.no_grad():
        model(IDS)
    with CheckpointReader(made) as reader:
        scales = [reader.read(f"model.layers.0.self_attn.{name}_proj.input_scale") for name in "qkv"]
    for scale in scales:
        assert float(scale) == pytest.approx(float(seen[0].abs().max()) / 448, rel=1e-5)


@pytest.mark.parametrize("kind", [rtn, gptq])
def test_modules_that_servers_fuse_share_one_global_scale(kind: Any, tmp_path: Path) -> None:
    made = quantized(tmp_path / "made", kind, dense(tmp_path / "dense", "nvfp4"), scheme="nvfp4")
    with CheckpointReader(tmp_path / "dense") as source, CheckpointReader(made) as reader:
        for block, fused in (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj"))):
            names = [f"model.layers.1.{block}.{name}" for name in fused]
            largest = max(float(source.read(f"{name}.weight").abs().max()) for name in names)
            for name in names:
                assert float(reader.read(f"{name}.weight_global_scale")) == pytest.approx(2688 / largest)
            assert len({float(reader.read(f"{name}.input_global_scale")) for name in names}) == 1
        down = "model.layers.1.mlp.down_proj"
        own = float(source.read(f"{down}.weight").abs().max())
        assert float(reader.read(f"{down}.weight_global_scale")) == pytest.approx(2688 / own)


@pytest.mark.parametrize("kind", [rtn, gptq])
def test_schemes_in_different_formats_share_a_checkpoint(kind: Any, tmp_path: Path) -> None:
    """As mixed-precision of compressed-tensors, which transformers loads, each module in its own format."""
    overrides = {
        "self_attn.*": {"scheme": "fp8"},
        "o_proj": {"scheme": "w4a16"},
        "layers.1.mlp.down_proj": {"scheme": "mxfp8"},
    }
    source = dense(tmp_path / "dense", "nvfp4")
    made = quantized(tmp_path / "made", kind, source, scheme="nvfp4", overrides=overrides)
    config = json.loads((made / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert [group["format"] for group in config["config_groups"].values()] == [
        "float-quantized", "nvfp4-pack-quantized", "pack-quantized", "mxfp8-quantized",
    ]  # fmt: skip
    assert measured(made, tmp_path / "scratch") == pytest.approx(reference(made), rel=2e-3)
    card = (made / "README.md").read_text()
    assert "- Stored as `float-quantized`, `mxfp8-quantized`, `nvfp4-pack-quantized` and `pack-quantized`;" in card


def test_weighing_errors_by_the_inputs_loses_less_than_not_weighing_them(tmp_path: Path) -> None:
    source = save(tmp_path / "dense", **SIZES)
    with torch.no_grad():
        whole = load_as_computed(source, IDS)(IDS).logits
    lost = {}
    for grid in ("minmax", "mse", "weighted_mse"):
        made = quantized(tmp_path / grid, rtn, source, scheme="w3a16", grid=grid)
        lost[grid] = float((logits(made, rounds=False) - whole).square().mean())
    assert lost["weighted_mse"] < lost["mse"] < lost["minmax"]


@pytest.mark.parametrize(
    ("format", "dtype", "params"),  # a type in which both layouts store scales alike
    [
        ("awq", torch.float16, {"bits": 4, "group_size": 32, "symmetric": False}),
        ("modelopt", torch.bfloat16, {"scheme": "nvfp4"}),
        ("modelopt", torch.float32, {"scheme": "fp8"}),
    ],
)
@pytest.mark.parametrize("kind", [rtn, gptq])
def test_layouts_of_others_give_what_compressed_tensors_gives(
    format: str, dtype: torch.dtype, params: dict[str, Any], kind: Any, tmp_path: Path
) -> None:
    """The same numbers; transformers cannot load these layouts without their owners' packages."""
    source = save(tmp_path / "dense", dtype=dtype, **SIZES)
    found: list[float] = []
    for name in ({}, {"format": format}):
        made = quantized(tmp_path / f"made{len(found)}", kind, source, **params, **name)
        found.append(measured(made, tmp_path / f"scratch{len(found)}"))
    assert found[0] == pytest.approx(found[1], rel=2e-3)
    assert found[0] == pytest.approx(reference(tmp_path / "made0" / "out"), rel=2e-3)


def test_calibrated_rounding_that_was_interrupted_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense", "nvfp4")
    whole = quantized(tmp_path / "whole", rtn, source, scheme="nvfp4")
    params: dict[str, Any] = {"scheme": "nvfp4", "data": "calibration"}
    stopped = Host(tmp_path / "parts", "quantize.rtn", source, IDS, stop_after=1, **params)
    with pytest.raises(Interrupted):
        rtn.run(stopped)
    resumed = Host(tmp_path / "parts", "quantize.rtn", source, IDS, **params)
    rtn.run(resumed)
    assert resumed.layers() == [2]
    assert (resumed.out_dir / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

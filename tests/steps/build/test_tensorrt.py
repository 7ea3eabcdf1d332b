"""Engines of tiny models, built by tensorrt-rtx without a GPU; run where there is one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Inputs, MachineFacts
from runner.errors import MachineError, StepFailed
from runner.export import compressed, preflight, tensorrt_capabilities
from runner.export.tensorrt import CAPABILITIES, MODULES, NAMES, Built
from runner.model.architecture import inspect
from runner.recipe.schema.load import defaults
from runner.runtime import open
from runner.steps import kinds
from tests import tiny
from tests.execute.test_disks import mounted
from tests.host import Host

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
# What the packages that export and build say of themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "max_position_embeddings": 128}


def quantized(folder: Path, name: str = "llama", sizes: dict[str, Any] | None = None, **params: Any) -> Path:
    source = tiny.save(folder / "source", name, **(SIZES if sizes is None else sizes))
    host = Host(folder / "quantized", "quantize.rtn", source, **{"bits": 4, "group_size": 64, **params})
    kinds.find("quantize.rtn").run(host)
    return host.out_dir


def complaints(checkpoint: Path, device: str = "cpu", **params: Any) -> list[tuple[str, str, str | None, Any]]:
    machine = MachineFacts(2, 8 << 30, 8 << 30, device, 0, None, 1e11, 1e9)
    inputs = Inputs(inspect.facts(checkpoint, "model"), {}, {}, machine)
    found = kinds.find("build.tensorrt").check(defaults("build.tensorrt", params), inputs)
    return [(d.code, d.message, d.help, d.path) for d in found]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Host, Any]:
    folder = tmp_path_factory.mktemp("engine")
    host = Host(folder, "build.tensorrt", quantized(folder), max_sequence_length=64, max_batch_size=2)
    return host, kinds.find("build.tensorrt").run(host)


@pytest.mark.nightly
@needs_rtx
def test_an_engine_holds_its_weights_at_four_bits(built: tuple[Host, Any]) -> None:
    host, result = built
    metrics = result.metrics
    linears = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512
    scales = 2 * linears // 64
    assert metrics["packed_bytes"] == linears // 2 + scales
    assert metrics["unpacked_bytes"] == 2 * linears
    assert (host.out_dir / "model.engine").stat().st_size == metrics["engine_bytes"]
    assert (
        metrics["graph_bytes"] <= metrics["weights_bytes"] < metrics["graph_bytes"] + metrics["packed_bytes"] + 20_000
    )
    assert metrics["weights_bytes"] < metrics["graph_bytes"] - metrics["packed_bytes"] + metrics["unpacked_bytes"] / 1.5


@pytest.mark.nightly
@needs_rtx
def test_the_folder_tells_what_it_is(built: tuple[Host, Any]) -> None:
    host, _ = built
    assert sorted(path.name for path in host.out_dir.iterdir()) == [
        "README.md", "config.json", "engine.json", "generation_config.json", "model.engine",
    ]  # fmt: skip
    engine = json.loads((host.out_dir / "engine.json").read_text())
    assert engine["format"] == "tensorrt"
    assert engine["flavour"] == "rtx"
    assert engine["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0+"]
    assert engine["source"] == {"digest": "0" * 64}
    assert (engine["context"], engine["vocabulary"], engine["max_batch"]) == (64, 96, 2)
    assert engine["stored"] == {"4-bit, symmetric, groups of 64": 7}
    assert [tensor["name"] for tensor in engine["inputs"]][:4] == [
        "input_ids", "attention_mask", "position_ids", "past_key_values.0.key",
    ]  # fmt: skip
    assert engine["outputs"][0] == {"name": "logits", "type": "float", "shape": [-1, -1, 96]}
    prefill, decode = engine["profiles"]
    assert prefill["shapes"]["input_ids"] == {"min": [1, 1], "usual": [2, 32], "max": [2, 64]}
    assert prefill["shapes"]["past_key_values.0.value"]["max"] == [2, 2, 0, 64]
    assert decode["shapes"]["past_key_values.0.key"] == {
        "min": [1, 2, 1, 64], "usual": [2, 2, 32, 64], "max": [2, 2, 63, 64],
    }  # fmt: skip
    assert decode["shapes"]["attention_mask"] == {"min": [1, 2], "usual": [2, 33], "max": [2, 64]}


@pytest.mark.nightly
@needs_rtx
def test_the_planner_foresees_engine_json(built: tuple[Host, Any]) -> None:
    host, _ = built
    machine = MachineFacts(2, 8 << 30, 8 << 30, "cpu", 0, None, 1e11, 1e9)
    inputs = Inputs(inspect.facts(host.inputs["checkpoint"].path, "model"), {}, {}, machine)
    kind = kinds.find("build.tensorrt")
    foreseen = kind.outcome(host.params, inputs).engine
    engine = json.loads((host.out_dir / "engine.json").read_text())
    assert foreseen is not None
    assert {key: engine[key] for key in foreseen} == dict(foreseen)
    cost = kind.estimate(host.params, inputs)
    assert cost.disk >= sum(path.stat().st_size for path in host.out_dir.iterdir()) - (8 << 20)


@needs_rtx
@pytest.mark.nightly
def test_the_graph_that_was_compared_is_the_one_that_is_built(tmp_path: Path) -> None:
    """`graph` names a step of build.onnx: its files are what TensorRT reads, and nothing is exported again."""
    checkpoint = quantized(tmp_path)
    exported = Host(tmp_path / "onnx", "build.onnx", checkpoint, target="tensorrt", precision="fp16")
    kinds.find("build.onnx").run(exported)
    host = Host(tmp_path / "engine", "build.tensorrt", checkpoint, others={"graph": exported.out_dir}, graph="onnx",
                max_sequence_length=64)  # fmt: skip
    host.params["compress"] = True
    result = kinds.find("build.tensorrt").run(host)
    files = {name: hashlib.sha256((exported.out_dir / "onnx" / name).read_bytes()).hexdigest()
             for name in ("model.onnx", "model.onnx_data")}  # fmt: skip
    assert json.loads((host.out_dir / "engine.json").read_text())["graph"] == files
    assert result.details["graph"] == files
    packed = host.out_dir / "model.engine.xz"
    assert result.metrics["file_bytes"] == packed.stat().st_size < result.metrics["engine_bytes"] / 2
    assert len(compressed.read(packed)) == result.metrics["engine_bytes"]
    assert "`xz -dk model.engine.xz`" in (host.out_dir / "README.md").read_text()
    assert result.metrics["weights_bytes"] >= result.metrics["graph_bytes"]
    assert [event["phase"] for event in host.events] == ["TensorRT", "TensorRT"]
    assert not list(host.scratch_dir.rglob("*.onnx*"))


@needs_rtx
def test_a_graph_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path)
    host = Host(tmp_path / "engine", "build.tensorrt", checkpoint, others={"graph": tmp_path}, graph="onnx")
    (tmp_path / "engine.json").write_text(json.dumps({"source": {"digest": "1" * 64}}))
    with pytest.raises(StepFailed) as caught:
        kinds.find("build.tensorrt").run(host)
    assert caught.value.render() == (
        f"error: the graph in `{tmp_path}` was made of the checkpoint 111111111111, not of 000000000000\n"
        "help: let `graph` and `from` name steps of one checkpoint"
    )
    (tmp_path / "engine.json").write_text("{}")
    with pytest.raises(StepFailed) as caught:
        kinds.find("build.tensorrt").run(host)
    assert caught.value.message == f"`{tmp_path}/engine.json` does not describe an ONNX graph: KeyError('source')"
    assert list(host.out_dir.iterdir()) == []


def test_graphs_that_do_not_fit(tmp_path: Path) -> None:
    facts = inspect.facts(quantized(tmp_path), "model")
    machine = MachineFacts(2, 8 << 30, 8 << 30, "cpu", 0, None, 1e11, 1e9)
    kind = kinds.find("build.tensorrt")

    def said(graph: CheckpointFacts) -> list[tuple[str, str, str | None, Any]]:
        inputs = Inputs(facts, {"graph": graph}, {}, machine)
        params = defaults("build.tensorrt", {"graph": "onnx"})
        return [(d.code, d.message, d.help, d.path) for d in kind.check(params, inputs)]

    def made(checkpoint: CheckpointFacts = facts, **params: Any) -> CheckpointFacts:
        return kinds.find("build.onnx").outcome(
            defaults("build.onnx", params), Inputs(checkpoint, {}, {}, machine)
        )  # fmt: skip

    assert said(made(target="tensorrt", precision="fp16")) == []
    path = ("graph",)
    help = "let it name a step of `build.onnx` with `target: tensorrt`"
    assert said(made()) == [
        ("R495", "`graph` names `onnx`, which makes an ONNX graph for onnxruntime", help, path)
    ]  # fmt: skip
    assert said(replace(facts, engine={"format": "gguf"})) == [
        ("R495", "`graph` names `onnx`, which makes a gguf engine", help, path)
    ]
    assert said(made(target="tensorrt")) == [
        ("R495", "`graph` names `onnx`, whose graph computes in fp32; `precision` is fp16",
         "give both steps the same `precision`", path),
    ]  # fmt: skip
    other = replace(facts, adapter={"r": 4})
    assert said(made(other, target="tensorrt", precision="fp16")) == [
        ("R495", "`graph` names `onnx`, whose graph is of another checkpoint than this step's",
         "give both steps the same `from`", path),
    ]  # fmt: skip
    alone = kind.estimate(defaults("build.tensorrt", {}), Inputs(facts, {}, {}, machine))
    given = kind.estimate(
        defaults("build.tensorrt", {"graph": "onnx"}), Inputs(facts, {"graph": facts}, {}, machine)
    )  # fmt: skip
    assert given.seconds < alone.seconds
    assert given.memory < alone.memory
    assert given.scratch == 0


@pytest.mark.nightly
@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_engine_without_a_gpu_is_refused(built: tuple[Host, Any]) -> None:
    with pytest.raises(MachineError) as caught:
        open.open(built[0].out_dir)
    assert caught.value.render() == (
        "error: a TensorRT engine needs an NVIDIA GPU, and torch finds none here\n"
        "help: run it on a machine with a GPU; `build.onnx` and `build.compile` make what runs on a CPU"
    )


@needs_rtx
@pytest.mark.nightly
def test_too_little_workspace(tmp_path: Path) -> None:
    host = Host(tmp_path, "build.tensorrt", quantized(tmp_path), max_sequence_length=64, workspace="1KB")
    with pytest.raises(StepFailed) as caught:
        kinds.find("build.tensorrt").run(host)
    assert "finds no way to compute the graph within `workspace`: " in caught.value.message
    assert caught.value.help == "raise `workspace`"
    assert list(host.out_dir.iterdir()) == []


def test_a_builder_that_tells_no_weights_is_judged_by_the_engine_without_its_code() -> None:
    from runner.steps.build import tensorrt as kind

    weights = SimpleNamespace(total=1_300_000, packed=1_000_000, unpacked=4_000_000)

    def judged(weights_bytes: int | None, engine_bytes: int) -> None:
        built = Built("11.4", 1.0, 0, engine_bytes, weights_bytes, ["9.0"], [], [])
        kind._check_packed(built, weights, 2, 4_000_000)

    judged(None, 7_000_000)
    judged(2_300_000, 99_000_000)
    for arguments in ((None, 8_400_000), (4_300_000, 5_000_000)):
        with pytest.raises(StepFailed, match="TensorRT unpacked quantized weights: the engine holds 4,"):
            judged(*arguments)


def test_what_cannot_be_built_is_told_before_anything_runs(tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path)
    assert complaints(checkpoint, compute_capabilities=["12.0", "8.6"], max_sequence_length=128) == []
    assert complaints(checkpoint, compute_capabilities=["8.6", "9.0", "7.5", "6.1"], max_sequence_length=129) == [
        ("R495", "`max_sequence_length` is 129; the model has 128 positions", "lower it to 128, or leave it out",
         ("max_sequence_length",)),
        ("R495", "TensorRT-RTX builds no engines for compute capability 9.0; it knows 7.5, 8.0, 8.6, 8.9, 12.0, 12.1",
         "build on that GPU with `flavour: enterprise`", ("compute_capabilities", 1)),
        ("R495", "GPUs of compute capability 7.5 have no way to multiply by quantized weights",
         "leave it out, or build it of a dense checkpoint", ("compute_capabilities", 2)),
        ("R495", "TensorRT-RTX builds no engines for compute capability 6.1; it knows 7.5, 8.0, 8.6, 8.9, 12.0, 12.1",
         "leave it out", ("compute_capabilities", 3)),
    ]  # fmt: skip


def test_enterprise_needs_a_gpu_and_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = quantized(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = complaints(checkpoint, flavour="enterprise", compute_capabilities=["9.0"])
    monkeypatch.undo()
    assert found == [
        ("R504", "`flavour: enterprise` builds on the GPU that is to run the engine; this step runs on the CPU",
         "use `flavour: rtx`, which builds without one, or a machine with a GPU", ("flavour",)),
        ("R503", "`flavour: enterprise` needs the package tensorrt, which is not installed", "`pip install tensorrt`",
         ("flavour",)),
        ("R495", "`flavour: enterprise` builds for the GPU of this machine alone",
         "leave it out, or use `flavour: rtx`", ("compute_capabilities",)),
    ]  # fmt: skip


def test_what_an_engine_is_for_is_part_of_its_key() -> None:
    kind = kinds.find("build.tensorrt")
    machine = MachineFacts(2, 8 << 30, 8 << 30, "cuda", 80 << 30, "NVIDIA H100", 1e11, 1e9)
    rtx, enterprise = ({"flavour": flavour} for flavour in ("rtx", "enterprise"))
    assert kinds.environment(kind, rtx, machine) == {}
    found = kinds.environment(kind, enterprise, machine)
    assert found == {"gpu": "NVIDIA H100", "tensorrt": found["tensorrt"]}
    assert [need.package for need in kinds.requirements(kind, rtx)] == ["tensorrt-rtx", "onnx", "onnxscript"]
    assert [need.package for need in kinds.requirements(kind, enterprise)] == ["onnx", "onnxscript"]


def test_integers_that_tensorrt_cannot_keep(tmp_path: Path) -> None:
    asymmetric = complaints(quantized(tmp_path / "a", symmetric=False))
    assert [(code, help) for code, _, help, _ in asymmetric] == [
        ("R478", "quantize with `symmetric: true`, or use build.onnx, which keeps it for onnxruntime")
    ]
    assert "is quantized asymmetrically; TensorRT's INT4 and INT8 have no zero points" in asymmetric[0][1]
    ((code, message, help, _),) = complaints(quantized(tmp_path / "b", bits=8))
    assert (code, help) == ("R478", 'quantize with `group_size: "channel"`, or to 4 bits')
    assert message.endswith(" (as 6 more) has 8 bits in groups of 64; TensorRT has groups at 4 bits only")
    assert complaints(quantized(tmp_path / "c", bits=8, group_size="channel")) == []
    assert complaints(quantized(tmp_path / "d", bits=3)) == []


FLOATS: dict[str, dict[str, Any]] = {
    "fp8": {"scheme": "fp8", "bits": 8, "format": "float-quantized"},
    "static fp8": {"scheme": "fp8", "bits": 8, "format": "float-quantized", "activations": "static"},
    "w8a8": {"scheme": "w8a8", "bits": 8, "group_size": "channel", "format": "int-quantized"},
    "nvfp4": {"scheme": "nvfp4", "format": "nvfp4-pack-quantized"},
    "nvfp4a16": {"scheme": "nvfp4a16", "format": "nvfp4-pack-quantized"},
}  # fmt: skip
GPUS = {"fp8": ["8.9", "12.0"], "static fp8": ["8.9", "12.0"], "w8a8": ["8.6"], "nvfp4": ["12.0"], "nvfp4a16": ["12.0"]}


def of_scheme(folder: Path, name: str, width: int = 256) -> Path:
    """A checkpoint of a scheme of FLOATS, calibrated where it needs to be."""
    params = FLOATS[name]
    sizes: dict[str, Any] = SIZES | {"hidden_size": width, "intermediate_size": 2 * width}
    source = tiny.save(folder / "source", "llama", torch.bfloat16, **sizes)
    ids = tiny.tokens(4, 32) if name in ("static fp8", "nvfp4") else None
    host = Host(folder / name, "quantize.rtn", source, ids, **params)
    kinds.find("quantize.rtn").run(host)
    return host.out_dir


@pytest.mark.parametrize("name", ["static fp8", "nvfp4"])
def test_floats_need_gpus_that_have_them(name: str, tmp_path: Path) -> None:
    checkpoint = of_scheme(tmp_path, name, 32)
    numbers, lowest, example = {
        "static fp8": ("8-bit floats", "8.9", '"8.9", "12.0"'), "nvfp4": ("4-bit floats", "12.0", '"12.0"'),
    }[name]  # fmt: skip
    first = "`model.layers.0.mlp.down_proj` (as 6 more)"
    assert complaints(checkpoint) == [(
        "R452",
        (f"{first} is stored in {numbers}, which not all GPUs of a portable engine have: TensorRT-RTX builds it for "
         f"those from {lowest} on alone"),
        f"name the GPUs: `compute_capabilities: [{example}]`",
        ("compute_capabilities",),
    )]  # fmt: skip
    assert complaints(checkpoint, compute_capabilities=["12.0", "8.6"]) == [(
        "R452",
        f"GPUs of compute capability 8.6 have no {numbers}, in which {first} is stored",
        f"leave it out: those from {lowest} on have them",
        ("compute_capabilities", 1),
    )]  # fmt: skip
    assert complaints(checkpoint, compute_capabilities=GPUS[name]) == []


def test_scales_of_tokens_are_computed_in_the_graph_and_the_plan_says_so(tmp_path: Path) -> None:
    assert complaints(of_scheme(tmp_path, "w8a8", 32)) == [(
        "R457",
        ("the inputs of `model.layers.0.mlp.down_proj` (as 6 more) have a scale for each token, for which TensorRT has "
         "no operator: the graph computes the same by a maximum and a division before products, and a multiplication "
         "after them"),
        "calibrated scales need none of this: quantize with `activations: static` and `data`",
        (),
    )]  # fmt: skip


def test_other_schemes_are_refused_by_name(tmp_path: Path) -> None:
    sizes: dict[str, Any] = SIZES
    source = tiny.save(tmp_path / "source", "llama", torch.bfloat16, **sizes)
    host = Host(tmp_path, "quantize.rtn", source, scheme="mxfp8", bits=8, format="mxfp8-quantized")
    kinds.find("quantize.rtn").run(host)
    ((code, message, help, _),) = complaints(host.out_dir)
    assert (code, help) == ("R478", "quantize with one of these, or serve the checkpoint with vLLM")
    assert message.endswith("graphs for TensorRT hold integers, `w8a8`, `fp8` by row, and `nvfp4`")


def test_a_gpu_that_lacks_the_numbers_is_refused_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, "build.tensorrt", of_scheme(tmp_path, "nvfp4a16"), flavour="enterprise")
    host.device = "cuda"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(MachineError) as caught:
        kinds.find("build.tensorrt").run(host)
    assert caught.value.render() == (
        "error: the GPU of this machine has compute capability 9.0 and no 4-bit floats, in which "
        "`model.layers.0.mlp.down_proj` (as 6 more) is stored\n"
        "help: build on a GPU from 10.0 on, or quantize with `bits: 4`, which every GPU from 8.0 on multiplies by"
    )
    assert host.events == []


@needs_rtx
@pytest.mark.nightly
@pytest.mark.parametrize("name", FLOATS)
def test_an_engine_of_each_scheme_keeps_its_weights(name: str, tmp_path: Path) -> None:
    checkpoint = of_scheme(tmp_path, name)
    host = Host(tmp_path / "engine", "build.tensorrt", checkpoint, max_sequence_length=64,
                compute_capabilities=GPUS[name])  # fmt: skip
    kind = kinds.find("build.tensorrt")
    metrics = kind.run(host).metrics
    linears = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512
    rows = 256 + 2 * 128 + 256 + 2 * 512 + 256
    packed = linears // 2 + linears // 16 + 7 * 4 if "nvfp4" in name else linears + 2 * rows
    assert metrics["packed_bytes"] == packed
    assert metrics["unpacked_bytes"] == 2 * linears
    assert metrics["graph_bytes"] <= metrics["weights_bytes"] < metrics["graph_bytes"] + packed + 20_000
    engine = json.loads((host.out_dir / "engine.json").read_text())
    assert engine["compute_capabilities"] == GPUS[name]
    machine = MachineFacts(2, 8 << 30, 8 << 30, "cpu", 0, None, 1e11, 1e9)
    inputs = Inputs(inspect.facts(checkpoint, "model"), {}, {}, machine)
    foreseen = kind.outcome(host.params, inputs).engine
    assert foreseen is not None
    assert {key: engine[key] for key in foreseen} == dict(foreseen)
    cost = kind.estimate(host.params, inputs)
    assert cost.scratch == pytest.approx(metrics["graph_bytes"], rel=0.02)
    written = sum(path.stat().st_size for path in host.out_dir.iterdir())
    assert written <= cost.disk < 2 * written


def test_a_dora_adapter_is_refused(tmp_path: Path) -> None:
    facts = replace(inspect.facts(quantized(tmp_path), "model"), adapter={"r": 4, "use_dora": True})
    inputs = Inputs(facts, {}, {}, MachineFacts(2, 8 << 30, 8 << 30, "cpu", 0, None, 1e11, 1e9))
    (found,) = kinds.find("build.tensorrt").check(defaults("build.tensorrt", {}), inputs)
    assert found.message == "the checkpoint has a DoRA adapter, whose branch depends on the base weights"


@pytest.fixture(params=["rtx", "enterprise"])
def on_gpu(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """An engine built on and for this GPU, by each flavour that can, and the checkpoint that it was made from."""
    flavour = str(request.param)
    found = "{}.{}".format(*torch.cuda.get_device_capability())
    if importlib.util.find_spec(MODULES[flavour]) is None:
        pytest.skip(f"{NAMES[flavour]} is not installed")
    if flavour == "rtx" and found not in CAPABILITIES[1:]:
        pytest.skip(f"TensorRT-RTX has no engines for quantized weights on compute capability {found}")
    checkpoint = quantized(tmp_path)
    host = Host(tmp_path, "build.tensorrt", checkpoint, max_sequence_length=96, max_batch_size=2, flavour=flavour)
    host.device = "cuda"
    kinds.find("build.tensorrt").run(host)
    return host.out_dir, checkpoint


@pytest.mark.gpu
@needs_gpu
def test_an_engine_computes_what_the_checkpoint_computes(on_gpu: tuple[Path, Path]) -> None:
    """A prompt whole, and then token by token the reference's own tokens, so that one near tie decides nothing else.

    The engine computes in half precision: tokens are equal wherever the reference's own two best are further apart
    than the two can differ.
    """
    from runner.runtime.transformers import Transformers

    engine, base = open.open(on_gpu[0], "cuda"), Transformers(on_gpu[1], "cuda", torch.float32, exact=True)
    try:
        for batch, length in ((1, 1), (2, 16), (1, 95)):
            prompts = tiny.tokens(batch, length).numpy()
            ours, theirs = engine.prefill(prompts), base.prefill(prompts)
            tolerance = 0.02 * float(np.abs(theirs).max())
            assert np.abs(ours - theirs).max() < tolerance
            equal = 0
            for _ in range(min(32, 96 - length)):
                best = np.sort(theirs[:, -1], axis=-1)
                clear = best[:, -1] - best[:, -2] > 2 * tolerance
                tokens = theirs[:, -1].argmax(-1)
                assert (ours[:, -1].argmax(-1) == tokens)[clear].all()
                equal += int(clear.sum())
                ours, theirs = engine.decode(tokens[:, None]), base.decode(tokens[:, None])
                assert np.abs(ours - theirs).max() < tolerance
            assert equal or length == 95
        again = engine.prefill(tiny.tokens(2, 16).numpy())  # the profile of prompts after that of tokens
        assert np.array_equal(again, engine.prefill(tiny.tokens(2, 16).numpy()))
        with pytest.raises(StepFailed, match="prompt and continuation may have 96 together"):
            engine.prefill(tiny.tokens(1, 97).numpy())
        with pytest.raises(StepFailed, match="3 sequences at once; it runs at most 2"):
            engine.prefill(tiny.tokens(3, 4).numpy())
    finally:
        engine.close()
        base.close()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", FLOATS)
def test_an_engine_of_each_scheme_is_as_near_as_its_checkpoint_in_half_precision(name: str, tmp_path: Path) -> None:
    """To the checkpoint in float32: inputs near the middle of two levels fall to either side in both."""
    from runner.runtime.transformers import Transformers

    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    flavour = "rtx" if capability in CAPABILITIES[1:] else "enterprise"
    checkpoint = of_scheme(tmp_path, name)
    needed = tensorrt_capabilities.need(preflight.schemes(inspect.facts(checkpoint, "model")))
    if needed is not None and tensorrt_capabilities.is_below(capability, needed[0].lowest[flavour]):
        pytest.skip(f"a GPU of compute capability {capability} has no {needed[0].numbers}")
    if importlib.util.find_spec(MODULES[flavour]) is None:
        pytest.skip(f"{NAMES[flavour]} is not installed")
    gpus: dict[str, Any] = {"compute_capabilities": [capability]} if flavour == "rtx" else {}
    host = Host(tmp_path / "engine", "build.tensorrt", checkpoint, max_sequence_length=64, flavour=flavour, **gpus)
    host.device = "cuda"
    kinds.find("build.tensorrt").run(host)
    prompts = tiny.tokens(1, 48).numpy()
    wanted, half = (
        Transformers(checkpoint, "cuda", dtype, exact=True).prefill(prompts).astype(np.float32)
        for dtype in (torch.float32, torch.float16)
    )
    engine = open.open(host.out_dir, "cuda")
    assert np.abs(engine.prefill(prompts) - wanted).mean() < 1.5 * np.abs(half - wanted).mean()
    engine.close()


@pytest.mark.gpu
@needs_gpu
def test_latency_of_an_engine_beside_its_checkpoint(on_gpu: tuple[Path, Path], tmp_path: Path) -> None:
    measured = {}
    for name, folder in zip(("engine", "checkpoint"), on_gpu, strict=True):
        timed = Host(tmp_path / name, "evaluate.latency", folder, prompt_tokens=32, new_tokens=32)
        timed.device = "cuda"
        measured[name] = kinds.find("evaluate.latency").run(timed).metrics
    for metrics in measured.values():
        assert metrics["prefill_tokens_per_second"] > 0
        assert metrics["gpu_memory"] > 0
    print({name: metrics["decode_tokens_per_second"] for name, metrics in measured.items()})


@pytest.mark.gpu
@needs_gpu
def test_a_corrupt_engine_is_refused_on_a_gpu(on_gpu: tuple[Path, Path]) -> None:
    path = on_gpu[0] / "model.engine"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(StepFailed) as caught:
        open.open(on_gpu[0])
    assert f" cannot read `{path}`: " in caught.value.message
    assert caught.value.help == "build it again"


@needs_rtx
@pytest.mark.nightly
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    checkpoint = quantized(tmp_path)
    with mounted(tmp_path / "disk", "size=3m") as disk:
        host = Host(disk, "build.tensorrt", checkpoint, max_sequence_length=64)
        with pytest.raises(MachineError) as caught:
            kinds.find("build.tensorrt").run(host)
        assert caught.value.message.startswith("the disk is full: model.engine could not be written, ")
        assert list(host.out_dir.iterdir()) == []
        assert not list(host.scratch_dir.rglob("*.engine*"))

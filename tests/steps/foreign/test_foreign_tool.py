"""What runner takes from another tool's checkpoint, and what it refuses; the tools themselves run nightly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.contracts.step_kind import DataFacts, Inputs, MachineFacts
from runner.errors import MachineError, StepFailed
from runner.job import built_environments
from runner.model.architecture import inspect
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.method import Linear, Statistics
from runner.model.source.locate import demo_path
from runner.plan import environments
from runner.recipe.schema.load import defaults
from runner.steps import foreign_tool
from runner.steps.kinds import find
from tests.host import Host
from tests.tiny import save

KIND = "foreign.llmcompressor"
NAME = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tool: here our own, of 4 bits in groups of 16."""
    host = Host(tmp_path_factory.mktemp("packed"), "quantize.rtn", dense, bits=4, group_size=16)
    find("quantize.rtn").run(host)
    return host.out_dir


def params(**changes: Any) -> Mapping[str, Any]:
    return defaults(KIND, {"data": "text", "group_size": 16, **changes})


def take(packed: Path, dense: Path, **changes: Any) -> Any:
    with CheckpointReader(packed) as tool, CheckpointReader(dense) as source:
        weight = source.read(f"{NAME}.weight")
        linear = Linear((NAME,), weight.float(), weight.dtype)
        return foreign_tool._take(tool, linear, Statistics(), params(**changes))


def test_the_integers_and_scales_of_the_tool_are_taken_as_they_are(packed: Path, dense: Path) -> None:
    found = take(packed, dense)
    with CheckpointReader(packed) as tool:
        expected = tool.read_quantized(NAME)
    assert torch.equal(found.quantized.codes, expected.codes)
    assert torch.equal(found.quantized.scale, expected.scale)
    weight = load_file(dense / "model.safetensors")[f"{NAME}.weight"].double()
    error = (expected.dequantize(torch.float64) - weight).square().sum() / weight.square().sum()
    assert found.metrics["weight_error"] == pytest.approx(float(error), rel=1e-3)


def test_another_scheme_than_the_planned_one_is_refused(packed: Path, dense: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        take(packed, dense, bits=8)
    assert caught.value.render() == (
        f"error: the tool stored `{NAME}` as 4-bit, symmetric, groups of 16; "
        "the plan has 8-bit, symmetric, groups of 16\n"
        "help: this is a fault of the step's kind or of its tool: report it; nothing of this step was kept"
    )


def test_what_the_tool_changed_beside_its_weights_is_refused(packed: Path, dense: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "tool")
    (file,) = (tmp_path / "tool").glob("*.safetensors")
    tensors = load_file(file)
    with CheckpointReader(dense) as source, CheckpointReader(packed) as tool:
        foreign_tool._check_rest(source, tool)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    file.chmod(0o644)
    save_file(tensors, file)
    with (
        CheckpointReader(dense) as source,
        CheckpointReader(tmp_path / "tool") as tool,
        pytest.raises(StepFailed) as caught,
    ):
        foreign_tool._check_rest(source, tool)
    assert caught.value.message == "the tool changed `model.norm.weight` too, which no packed weight replaces"


def test_columns_in_other_groups_than_neighbours_are_refused(
    packed: Path, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointReader(packed) as tool, CheckpointReader(dense) as source:
        weight = source.read(f"{NAME}.weight")
        linear = Linear((NAME,), weight.float(), weight.dtype)
        order = torch.arange(weight.shape[1]).flip(0) // 16
        grouped = replace(tool.read_quantized(NAME), groups=order)
        monkeypatch.setattr(tool, "read_quantized", lambda name: grouped)
        with pytest.raises(StepFailed) as caught:
            foreign_tool._take(tool, linear, Statistics(), params())
    assert caught.value.message == f"the tool stored the columns of `{NAME}` in groups that are no neighbours"


def said(kind: str, machine: MachineFacts, model: Path) -> list[str]:
    data = {"data": DataFacts("text", 8, 64, 10**6, "0" * 64)}
    inputs = Inputs(inspect.facts(model, "demo"), {}, data, machine)
    own = defaults(kind, {"data": "text", "group_size": 32})
    return [found.render() for found in find(kind).check(own, inputs)]


def test_autogptq_needs_a_gpu_and_a_model_that_it_knows(tmp_path: Path) -> None:
    llama, gemma = demo_path("models", "tiny-llama"), save(tmp_path, "gemma2")
    cpu = MachineFacts(4, 10**10, 10**10, "cpu", 0, None, 1e11, 5e8)
    assert said("foreign.autogptq", cpu, llama) == [
        (
            "error[R504]: AutoGPTQ computes on an NVIDIA GPU, and this step would run on the CPU\n"
            "help: run it on a machine with one, or use `foreign.gptqmodel`"
        )
    ]
    gpu = replace(cpu, device="cuda")
    assert said("foreign.autogptq", gpu, llama) == []
    assert said("foreign.autogptq", gpu, gemma) == [
        (
            "error[R715]: AutoGPTQ 0.7.1 is not run on models of type `gemma2`\n"
            "help: use `foreign.gptqmodel`; this kind takes `llama`, `mistral`, `qwen2`"
        )
    ]


def test_autogptq_gets_a_configuration_of_its_time(tmp_path: Path) -> None:
    from runner.steps.foreign_tools import run_autogptq

    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"weights")
    config: dict[str, Any] = {"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    (source / "config.json").write_text(json.dumps(config))
    made = run_autogptq.as_transformers_4(source, tmp_path / "made")
    assert json.loads((made / "config.json").read_text()) == {"torch_dtype": "bfloat16", "rope_theta": 5e5}
    assert (made / "model.safetensors").read_bytes() == b"weights"
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    (source / "config.json").write_text(json.dumps(config))
    run_autogptq.as_transformers_4(source, made)
    assert json.loads((made / "config.json").read_text())["rope_scaling"] == {"type": "linear", "factor": 2.0}
    config["rope_parameters"] |= {"rope_type": "llama3"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="does not know these rotary positions"):
        run_autogptq.as_transformers_4(source, made)


class Foreign(Host):
    """A host whose environment is built."""

    def python(self) -> Path:
        own: tuple[str, ...] = getattr(find(self.step.kind), "ENVIRONMENT", ())
        # A build of torch for the CPU, where there is a folder with one, is a tenth of that for GPUs.
        wanted = environments.Wanted((*own, "torch==2.13.0"), find_links=os.environ.get("PIP_FIND_LINKS"))
        try:
            return built_environments.ensure(environments.resolve(wanted), lambda text: None)
        except MachineError as error:
            pytest.skip(f"the environment cannot be had here: {error.message.splitlines()[0]}")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("foreign.llmcompressor", {}),
        ("foreign.autoround", {"iters": 2, "batch_size": 4}),
        ("foreign.gptqmodel", {}),
        ("foreign.gptqmodel", {"bits": 8, "symmetric": False}),
    ],
)
def test_a_tool_quantizes_in_its_own_environment(kind: str, own: dict[str, Any], tmp_path: Path) -> None:
    """Every packed tensor of the result has the bytes that the tool wrote."""
    ids = torch.randint(3, 400, (8, 32), generator=torch.Generator().manual_seed(0))
    host = Foreign(tmp_path, kind, demo_path("models", "tiny-llama"), ids, group_size=32, **own)
    result = find(kind).run(host)
    assert result.account is not None
    assert {event["phase"] for event in host.events if event["event"] == "progress"} >= {"quantizing", "saving"}
    (ours,) = host.out_dir.glob("*.safetensors")
    (theirs,) = (host.scratch_dir / "tool").glob("*.safetensors")
    made, written = load_file(ours), load_file(theirs)
    names = [name for name in made if ".weight_" in name or name.endswith((".qweight", ".scales"))]
    assert len(names) >= 3
    for name in names:
        assert torch.equal(made[name].reshape(-1), written[name].reshape(-1)), name


def test_the_scripts_stand_alone() -> None:
    """They start in an environment that has nothing of runner: without a request they end at its absence."""
    folder = Path(foreign_tool.__file__).parent / "foreign_tools"
    scripts = sorted(folder.glob("run_*.py"))
    assert len(scripts) == 4
    for script in scripts:
        done = subprocess.run(
            [shutil.which("python3") or "python3", "-I", str(script), "/nonexistent.json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stderr.endswith("No such file or directory: '/nonexistent.json'\n")

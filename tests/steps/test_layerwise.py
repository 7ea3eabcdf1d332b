"""What layer-wise kinds refuse before anything runs, in whole messages, and what they forecast."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from runner.contracts.step_kind import DataFacts, Inputs, MachineFacts
from runner.errors import Diagnostic, RecipeError
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.plan.resolve import resolve
from runner.recipe.load import loads
from runner.recipe.schema.load import defaults
from runner.steps.gptq_solver import solving_seconds
from runner.steps.kinds import find
from runner.steps.quantize.gptq import method as gptq
from runner.steps.stream_cost import distinct_inputs, stacks
from tests.host import Host
from tests.tiny import save, tokens

TINY_LLAMA = Path(__file__).parents[2] / "runner" / "demo" / "models" / "tiny-llama"


def complaints(folder: Path, step: str) -> str:
    """The rendered complaints about one step on a one-layer model with the embedded tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_LLAMA / name, folder / name)
    text = f"version: 1\nname: refused\nmodel: {{source: {folder}}}\nsteps:\n  - {step}\n"
    with pytest.raises(RecipeError) as caught:
        resolve(loads(text, "refused.yaml"))
    return caught.value.render()


def diagnostics(folder: Path, step: str) -> list[Diagnostic]:
    """The complaints and warnings of one step's kind, on data that is long enough."""
    [(name, written)] = yaml.safe_load(step).items() if not step.endswith(":") else [(step[:-1], {})]
    data = {"data": DataFacts("d", 64, 8, 10_000, "0")}
    given = facts(folder, str(folder))
    inputs = Inputs(given, {"teacher": given}, data, machine_facts("cpu"))
    return find(name).check({**defaults(name, written), "loss": "next_token"}, inputs)


def one_layer(tmp_path: Path, **changes: Any) -> Path:
    return save(tmp_path / "model", "llama", num_hidden_layers=1, **changes)


def test_a_group_size_that_does_not_divide_lists_every_module(tmp_path: Path) -> None:
    folder = one_layer(tmp_path)
    assert complaints(folder, "quantize.rtn: {bits: 4, group_size: 48}") == (
        "refused.yaml:5:41: error[R411]: 1 module cannot be stored as asked; use group_size 16 or 32 or 64:\n"
        "    `model.layers.0.mlp.down_proj` has 64 columns, which group_size 48 does not divide\n"
        "    5 |   - quantize.rtn: {bits: 4, group_size: 48}\n"
        "      |                                         ^^\n"
        "help: use group_size 16 or 32 or 64\n"
        "\n"
        "refused.yaml:5:41: error[R411]: 6 modules cannot be stored as asked; use group_size 16 or 32:\n"
        "    `model.layers.0.mlp.gate_proj` has 32 columns, which group_size 48 does not divide\n"
        "    `model.layers.0.mlp.up_proj` has 32 columns, which group_size 48 does not divide\n"
        "    `model.layers.0.self_attn.k_proj` has 32 columns, which group_size 48 does not divide\n"
        "    `model.layers.0.self_attn.o_proj` has 32 columns, which group_size 48 does not divide\n"
        "    `model.layers.0.self_attn.q_proj` has 32 columns, which group_size 48 does not divide\n"
        "    `model.layers.0.self_attn.v_proj` has 32 columns, which group_size 48 does not divide\n"
        "    5 |   - quantize.rtn: {bits: 4, group_size: 48}\n"
        "      |                                         ^^\n"
        "help: use group_size 16 or 32"
    )


def test_layers_that_are_alike_share_a_line(tmp_path: Path) -> None:
    """Of 180 modules with one problem, seven lines."""
    folder = save(tmp_path / "model", "llama", num_hidden_layers=3)
    shutil.copyfile(TINY_LLAMA / "tokenizer.json", folder / "tokenizer.json")
    assert complaints(folder, "quantize.rtn: {bits: 4, group_size: 64}").splitlines()[:7] == [
        "refused.yaml:5:41: error[R411]: 18 modules cannot be stored as asked; use group_size 16 or 32:",
        "    `model.layers.*.mlp.gate_proj` has 32 columns, which group_size 64 does not divide (3 layers)",
        "    `model.layers.*.mlp.up_proj` has 32 columns, which group_size 64 does not divide (3 layers)",
        "    `model.layers.*.self_attn.k_proj` has 32 columns, which group_size 64 does not divide (3 layers)",
        "    `model.layers.*.self_attn.o_proj` has 32 columns, which group_size 64 does not divide (3 layers)",
        "    `model.layers.*.self_attn.q_proj` has 32 columns, which group_size 64 does not divide (3 layers)",
        "    `model.layers.*.self_attn.v_proj` has 32 columns, which group_size 64 does not divide (3 layers)",
    ]


def test_a_pattern_of_zeros_that_does_not_divide_columns(tmp_path: Path) -> None:
    folder = one_layer(tmp_path, hidden_size=36, num_attention_heads=3, num_key_value_heads=3)
    [found] = diagnostics(folder, "prune.sparsegpt: {pattern: '4:8'}")
    assert (found.code, found.help) == ("R631", "`ignore` them, or use `pattern: unstructured`")
    assert found.message == (
        "the pattern does not fit modules whose columns it does not divide:"
        "\n    `model.layers.0.mlp.gate_proj` has 36 columns"
        "\n    `model.layers.0.mlp.up_proj` has 36 columns"
        "\n    `model.layers.0.self_attn.k_proj` has 36 columns"
        "\n    `model.layers.0.self_attn.o_proj` has 36 columns"
        "\n    `model.layers.0.self_attn.q_proj` has 36 columns"
        "\n    `model.layers.0.self_attn.v_proj` has 36 columns"
    )


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    assert complaints(one_layer(tmp_path), "quantize.rtn: {ignore: [lm_head, q_prj]}") == (
        "refused.yaml:5:20: error[R412]: `ignore` names `q_prj`, which matches no linear module of this model\n"
        "    5 |   - quantize.rtn: {ignore: [lm_head, q_prj]}\n"
        "      |                    ^^^^^^\n"
        "help: its linear modules are `down_proj`, `gate_proj`, `k_proj`, `o_proj`, `q_proj`, `up_proj`, `v_proj`"
    )


ALONE = "it changes linear modules of decoder layers alone"


@pytest.mark.parametrize(
    ("step", "complaint", "help"),
    [
        ("quantize.rtn: {overrides: {lm_head: {bits: 4}}}",
         f"`overrides` names `lm_head`, which this step leaves as it is: {ALONE}", "leave it out"),
        ("prune.magnitude: {per_layer: {lm_head: 0.9}}",
         f"`per_layer` names `lm_head`, which this step leaves as it is: {ALONE}", "leave it out"),
        ("recover.lora: {data: d, target_modules: [q_proj, lm_head]}",
         f"`target_modules` names `lm_head`, which this step leaves as it is: {ALONE}", "leave it out"),
        ("quantize.rtn: {ignore: [lm_head, mlp.*], overrides: {down_proj: {bits: 4}}}",
         "`overrides` names `down_proj`, and `ignore` leaves out every module that it matches",
         "take it out of one of the two"),
    ],
)  # fmt: skip
def test_names_that_have_no_effect(step: str, complaint: str, help: str, tmp_path: Path) -> None:
    folder = one_layer(tmp_path)
    found = diagnostics(folder, step)
    assert [(d.code, d.message, d.help, d.severity) for d in found] == [("R412", complaint, help, "error")]


@pytest.mark.parametrize(
    ("step", "message", "help"),
    [
        ("quantize.rtn: {ignore: []}", f"`ignore: []` does not make this step change `lm_head`: {ALONE}",
         "leave it out"),
        ("prune.magnitude: {sparsity: 0}", "`sparsity` is 0 in every module: this step changes nothing",
         "set the part of the weights that is to become zero, or leave the step out"),
        ("prune.magnitude: {per_layer: {'*': 0}}", "`sparsity` is 0 in every module: this step changes nothing",
         "set the part of the weights that is to become zero, or leave the step out"),
    ],
)  # fmt: skip
def test_what_hardly_is_meant(step: str, message: str, help: str, tmp_path: Path) -> None:
    found = diagnostics(one_layer(tmp_path), step)
    assert [(d.code, d.message, d.help, d.severity) for d in found] == [("R418", message, help, "warning")]


@pytest.mark.parametrize(
    "step",
    ["quantize.rtn: {overrides: {o_proj: {bits: 4}}}", "quantize.rtn: {ignore: [lm_head]}",
     "prune.magnitude: {sparsity: 0, per_layer: {q_proj: 0.5}}",
     "quantize.rtn: {ignore: [o_proj], overrides: {'*': {bits: 4}}}"],
)  # fmt: skip
def test_what_has_an_effect(step: str, tmp_path: Path) -> None:
    assert diagnostics(one_layer(tmp_path), step) == []


def test_a_step_that_would_change_nothing(tmp_path: Path) -> None:
    assert complaints(one_layer(tmp_path), 'quantize.rtn: {ignore: ["*"]}') == (
        "refused.yaml:5:20: error[R410]: `ignore` leaves no linear module to change\n"
        '    5 |   - quantize.rtn: {ignore: ["*"]}\n'
        "      |                    ^^^^^^"
    )


def test_schemes_that_no_reader_takes_together(tmp_path: Path) -> None:
    step = "quantize.rtn: {symmetric: false, overrides: {down_proj: {bits: 4}}}"
    assert complaints(one_layer(tmp_path), step) == (
        "refused.yaml:5:38: error[R413]: transformers cannot load asymmetric weights beside weights of another scheme\n"
        "    5 |   - quantize.rtn: {symmetric: false, overrides: {down_proj: {bits: 4}}}\n"
        "      |                                      ^^^^^^^^^\n"
        "help: use `symmetric: true` everywhere, or one scheme for all modules"
    )


@pytest.mark.parametrize("kind", ["quantize.gptq", "quantize.rtn"])
def test_the_outcome_is_what_is_written(kind: str, tmp_path: Path) -> None:
    """Names, dtypes and shapes of the forecast checkpoint are those of the real one."""
    folder = save(tmp_path / "model", "llama", dtype=torch.bfloat16)
    ids = tokens() if kind == "quantize.gptq" else None
    host = Host(tmp_path / "step", kind, folder, ids, group_size=16, bits=4, ignore=["lm_head", "k_proj"])
    params = defaults(kind, host.params)
    data = {"data": DataFacts("calibration", 6, 24, 0, "")}
    inputs = Inputs(facts(folder, "model"), {}, data, machine_facts("cpu"))
    forecast = find(kind).outcome(params, inputs)
    find(kind).run(host)
    written = facts(host.out_dir, "written")
    assert {n: (t.dtype, t.shape, t.nbytes) for n, t in forecast.tensors.items()} == {
        n: (t.dtype, t.shape, t.nbytes) for n, t in written.tensors.items()
    }
    cost = find(kind).estimate(params, inputs)
    assert cost.disk == sum(t.nbytes for t in written.tensors.values())


def test_a_layer_has_four_inputs(tmp_path: Path) -> None:
    """Of seven linears, and as many of the four of a layer with fused ones."""
    llama = facts(save(tmp_path / "llama", "llama"), "llama")
    phi = facts(save(tmp_path / "phi3", "phi3"), "phi3")
    for model in (llama, phi):
        narrow, wide = (pick(i.columns for i in model.sites) for pick in (min, max))
        assert distinct_inputs(model) == [narrow, narrow, narrow, wide] * model.layer_count


def test_solving_is_part_of_the_forecast(tmp_path: Path) -> None:
    """With few tokens it is most of it: twice the cores and twice the products a second take half of the time."""
    model = facts(save(tmp_path / "llama", "llama", hidden_size=512, intermediate_size=4096), "llama")
    data = {"data": DataFacts("calibration", 1, 8, 0, "")}
    machine = replace(machine_facts("cpu"), cpus=2, flops=1e11)

    def seconds(kind: str, machine: MachineFacts) -> float:
        return find(kind).estimate(defaults(kind, {"data": "calibration"}), Inputs(model, {}, data, machine)).seconds

    solving, fast = solving_seconds(model, machine), replace(machine, cpus=4, flops=2e11)
    columns = 30e-6 * sum(distinct_inputs(model))
    assert solving > 1
    assert solving_seconds(model, fast) - columns == pytest.approx((solving - columns) / 2)
    assert seconds("quantize.gptq", machine) - seconds("quantize.gptq", fast) > 0.9 * (solving - columns) / 2
    assert seconds("prune.wanda", machine) - seconds("prune.wanda", fast) < 0.1 * solving


def test_what_is_solved_together_sees_one_input(tmp_path: Path) -> None:
    """Of the linears of one width, q with k and v, and gate with up: not all of a layer at once."""
    model = facts(save(tmp_path / "llama", "llama"), "llama")
    sizes = {site.name: site.size for site in model.sites if site.layer == 0}
    of = {name.rpartition(".")[2]: size for name, size in sizes.items()}
    widest = model.config.hidden_size
    expected = max(of["q_proj"] + of["k_proj"] + of["v_proj"], of["gate_proj"] + of["up_proj"], of["o_proj"])
    assert stacks(gptq, model)[widest] == expected
    unknown = replace(model, sites=tuple(replace(site, role="other", fused_with=()) for site in model.sites))
    everything = sum(size for name, size in sizes.items() if "down" not in name)
    assert stacks(gptq, unknown)[widest] == everything
    assert stacks(replace(gptq, stacked=False), unknown)[widest] == max(of["gate_proj"], of["q_proj"])


def test_what_lies_on_the_card_is_no_part_of_the_hosts_memory(tmp_path: Path) -> None:
    """A hundred times the tokens take more of a CPU's memory, and none of that of a host with a GPU."""
    model = facts(save(tmp_path / "llama", "llama"), "llama")
    cpu = machine_facts("cpu")
    gpu = replace(cpu, device="cuda", device_memory=80 << 30, gpu_name="NVIDIA H100")

    def memory(kind: str, machine: MachineFacts, windows: int) -> int:
        data = {"data": DataFacts("calibration", windows, 512, 0, "")}
        return find(kind).estimate(defaults(kind, {"data": "calibration"}), Inputs(model, {}, data, machine)).memory

    assert memory("quantize.gptq", cpu, 1000) > memory("quantize.gptq", cpu, 10)
    for kind in ("quantize.gptq", "prune.wanda", "evaluate.perplexity"):
        assert memory(kind, gpu, 1000) == memory(kind, gpu, 10) > 1.5e9

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.model_config import ModelConfig
from runner.contracts.step_kind import Cost, MachineFacts
from runner.plan.types import Forecast, Plan, PlannedStep, Preview, ResolvedModel
from runner.recipe.types import ModelSpec, Recipe
from runner.report import preview as report

MACHINE = MachineFacts(
    cpus=2, memory=16_000_000_000, memory_available=8_000_000_000, device="cpu", device_memory=0, gpu_name=None,
    flops=1e12, disk_bytes_per_second=1e9,
)  # fmt: skip


def made(*states: tuple[str, str, Cost, str]) -> Preview:
    """A preview of steps (kind, state, cost, reason)."""
    steps = tuple(
        PlannedStep(
            index=i, id=kind.split(".")[1], kind=kind, kind_version=1, params={}, seed=0, inputs={}, data={},
            consumes=(), produces="checkpoint", gates={}, key=f"{i:064x}", key_inputs={}, folder=f"{i:02}",
        )
        for i, (kind, *_) in enumerate(states)
    )  # fmt: skip
    tensor = TensorHeader("w", "BF16", (1000, 70_000), "model.safetensors", 0, 140_000_000)
    config = ModelConfig.of({"architectures": ["LlamaForCausalLM"]})
    facts = CheckpointFacts("m", config, {"w": tensor}, "model.layers.", 32, ())
    recipe = Recipe(
        file="r.yaml", name="tiny", description="A tiny thing.", params={}, model=ModelSpec("org/m"), seed=0, data={},
        steps=(), document={},
    )  # fmt: skip
    plan = Plan(recipe, ResolvedModel("org/m", None, None, Path(), "d", facts), {}, steps, "ab" * 32, "cpu")
    forecasts = tuple(
        Forecast(step, state, reason, cost, 17 if state == "resume" else None, 32 if state == "resume" else None)
        for step, (_, state, cost, reason) in zip(steps, states, strict=True)
    )
    return Preview(plan, forecasts, MACHINE)


NONE = Cost(0, 0, 0, 0.0)
MIXED = made(
    ("evaluate.perplexity", "cached", NONE, "nothing changed"),
    ("quantize.gptq", "resume", Cost(1_200_000_000, 48_000_000, 90_000_000, 245.0), "interrupted"),
    ("evaluate.divergence", "run", Cost(900_000_000, 0, 10_000_000, 20.0), "input step `gptq` runs again"),
)


def shown(lines: list[object]) -> str:
    return "\n".join(str(line) for line in lines) + "\n"


def test_what_a_step_trains() -> None:
    """After the accounts of tensors; and in JSON."""
    forecast = MIXED.forecasts[1]
    what = "19,968 parameters, adapters of rank 4 for 16 linear modules and 16 experts"
    training = replace(MIXED, forecasts=(replace(forecast, step=replace(forecast.step, trains=what)),))
    assert f"\n{forecast.step.id}: trains {what}\n" in shown([*report.lines(training, 120)])
    assert [step["trains"] for step in report.document(training)["steps"]] == [what]
    assert "trains" not in shown([*report.lines(MIXED, 120)])


def test_the_whole_plan() -> None:
    assert (
        shown([*report.lines(MIXED, 120)])
        == """\
tiny-abababababab
A tiny thing.
org/m: LlamaForCausalLM, 32 layers, 70.0 M parameters, 140 MB; on the CPU (2 cores)

 #  step        kind                 state                   memory     disk    time  reason
 1  perplexity  evaluate.perplexity  cached                                           nothing changed
 2  gptq        quantize.gptq        resume at layer 17/32  1.20 GB  48.0 MB  ~4 min  interrupted
 3  divergence  evaluate.divergence  run                     900 MB            ~20 s  input step `gptq` runs again

1 to run, 1 to resume, 1 cached; peak memory 1.20 GB of 8.00 GB available, 138 MB of disk, ~4 min
"""
    )


def test_a_narrow_terminal() -> None:
    assert (
        shown([*report.lines(MIXED, 60)])
        == """\
tiny-abababababab
A tiny thing.
org/m: LlamaForCausalLM, 32 layers, 70.0 M parameters, 140 MB; on the CPU (2 cores)

 1  perplexity  evaluate.perplexity  cached  nothing changed
 2  gptq  quantize.gptq  resume at layer 17/32  1.20 GB
     48.0 MB  ~4 min  interrupted
 3  divergence  evaluate.divergence  run  900 MB  ~20 s
     input step `gptq` runs again

1 to run, 1 to resume, 1 cached; peak memory 1.20 GB of 8.00 GB available, 138 MB of disk, ~4 min
"""
    )


def test_what_apply_says_first() -> None:
    preview = replace(MIXED, notes=("`org/m` is downloaded first: 0.14 GB",))
    assert (
        shown([*report.short(preview, 120)])
        == """\
tiny-abababababab
A tiny thing.
org/m: LlamaForCausalLM, 32 layers, 70.0 M parameters, 140 MB; on the CPU (2 cores)
 step        kind                 state                   memory     disk    time  reason
 gptq        quantize.gptq        resume at layer 17/32  1.20 GB  48.0 MB  ~4 min  interrupted
 divergence  evaluate.divergence  run                     900 MB            ~20 s  input step `gptq` runs again
1 to run, 1 to resume, 1 cached; peak memory 1.20 GB of 8.00 GB available, 138 MB of disk, ~4 min
note: `org/m` is downloaded first: 0.14 GB
"""
    )


def test_nothing_to_run() -> None:
    preview = made(("prune.wanda", "cached", NONE, "nothing changed"))
    assert shown([*report.short(preview, 120)]).splitlines()[-1] == "nothing to run: its one step is cached"


def test_more_memory_than_is_free_stands_out() -> None:
    preview = replace(MIXED, machine=replace(MACHINE, memory_available=1_000_000_000))
    line = report.lines(preview, 120)[-1]
    assert [line.plain[s.start : s.end] for s in line.spans] == ["peak memory 1.20 GB of 1.00 GB available"]


def test_where_steps_run() -> None:
    gpu = replace(MIXED, machine=replace(MACHINE, device="cuda", gpu_name="NVIDIA H100"))
    assert report.heading(gpu, 120)[2].plain.endswith("; on NVIDIA H100")

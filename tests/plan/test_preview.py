"""What `runner plan` says: states, reasons, costs, and what the machine cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runner.contracts.step_kind import Cost, MachineFacts
from runner.errors import MachineError
from runner.plan import machine, preview, resolve
from runner.plan.facts_flow import FactsFlow
from runner.plan.resources import Node, Offer, Processor, demand_of
from runner.plan.types import Plan
from tests.plan.recipes import FakeStore, recipe

MACHINE = MachineFacts(2, 24 * 10**9, 20 * 10**9, "cpu", 0, None, 2e11, 5e8)


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_facts", lambda device: MACHINE)
    monkeypatch.setattr(machine, "free_disk", lambda folder: 10**12)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve.resolve(recipe(), device="cpu")


def test_first_run(plan: Plan, tmp_path: Path) -> None:
    found = preview.preview(plan, FakeStore(tmp_path))
    assert [(f.step.id, f.state, f.reason) for f in found.forecasts] == [
        (id, "run", "first run") for id in ("baseline", "wanda", "gptq", "quality")
    ]
    assert all(f.cost.memory > 10**8 and f.cost.seconds > 0 for f in found.forecasts)
    # A pruned checkpoint is as large as the model, 11.5 MB; one of 4 bits is smaller.
    assert found.forecasts[1].cost.disk == plan.model.facts.nbytes
    assert 0 < found.forecasts[2].cost.disk < found.forecasts[1].cost.disk
    assert found.notes == ()


def test_cached_and_resumed(plan: Plan, tmp_path: Path) -> None:
    keys = [step.key for step in plan.steps]
    store = FakeStore(tmp_path, done=set(keys[:2]), partial={keys[2]: (3, 6), keys[1]: (1, 6)})
    whole = preview.preview(plan, FakeStore(tmp_path)).forecasts[2].cost
    found = preview.preview(plan, store).forecasts
    assert [(f.state, f.reason, f.resume_layer, f.layers) for f in found] == [
        ("cached", "nothing changed", None, None),
        ("cached", "nothing changed", None, None),
        ("resume", "interrupted", 4, 6),
        ("run", "first run", None, None),
    ]
    assert found[0].cost == Cost(0, 0, 0, 0.0)
    assert found[2].cost.seconds == pytest.approx(whole.seconds / 2)
    assert replace(found[2].cost, seconds=whole.seconds) == whole


def test_a_step_interrupted_after_its_last_layer(plan: Plan, tmp_path: Path) -> None:
    found = preview.preview(plan, FakeStore(tmp_path, partial={plan.steps[2].key: (6, 6)})).forecasts[2]
    assert (found.resume_layer, found.layers) == (6, 6)


def test_a_training_is_resumed_at_a_step(plan: Plan, tmp_path: Path) -> None:
    store = FakeStore(tmp_path, partial={plan.steps[2].key: (120, 400)})
    store.units[plan.steps[2].key] = "step"
    whole = preview.preview(plan, FakeStore(tmp_path)).forecasts[2].cost
    found = preview.preview(plan, store).forecasts[2]
    assert (found.resume_layer, found.layers, found.unit) == (121, 400, "step")
    assert found.cost.seconds == pytest.approx(0.7 * whole.seconds)


def test_reasons_come_from_the_last_job(plan: Plan, tmp_path: Path) -> None:
    before = {step.id: dict(step.key_inputs) for step in plan.steps}
    before["wanda"] = {**before["wanda"], "params": {**before["wanda"]["params"], "sparsity": 0.5}}
    before["gptq"] = {**before["gptq"], "inputs": {"checkpoint": "another"}}
    del before["quality"]
    found = preview.preview(plan, FakeStore(tmp_path, done={plan.steps[0].key}), before)
    assert [f.reason for f in found.forecasts] == [
        "nothing changed",
        "`sparsity` changed 0.5 → 0.2",
        "input step `wanda` runs again",
        "step is new",
    ]


def test_more_memory_than_the_machine_has(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_facts", lambda device: replace(MACHINE, memory=10**8))
    monkeypatch.setattr(FactsFlow, "cost", lambda self, step: Cost(3 * 10**9 if step.id == "gptq" else 1, 0, 0, 1.0))
    with pytest.raises(MachineError) as caught:
        preview.preview(plan, FakeStore(tmp_path))
    assert caught.value.exit_code == 4
    assert caught.value.render() == (
        "small.yaml:12:5: error[R501]: step `gptq` needs 3.0 GB of memory; this machine has 0.10 GB\n"
        "   12 |   - quantize.gptq: {data: calibration, bits: 4}\n"
        "      |     ^^^^^^^^^^^^^\n"
        "help: lower `samples` (now 8) or `sequence_length` (now 64) of data `calibration`"
    )


@pytest.mark.parametrize(
    ("kind", "help"),
    [
        (
            "recover.lora: {data: calibration, loss: next_token}",
            (
                "raise `gradient_accumulation` (now 1); lower `batch_size` (now 8); "
                "set `gradient_checkpointing: true`; lower `sequence_length` (now 64) of data `calibration`"
            ),
        ),
        ("evaluate.tasks: {tasks: [arc_easy]}", "lower `batch_size` (now 8)"),
    ],
)
def test_what_memory_grows_with_depends_on_the_step(
    kind: str, help: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "machine_facts", lambda device: replace(MACHINE, memory=10**8))
    monkeypatch.setattr(FactsFlow, "cost", lambda self, step: Cost(3 * 10**9, 0, 0, 1.0))
    made = resolve.resolve(recipe(f"steps:\n  - {kind}\n"), device="cpu")
    with pytest.raises(MachineError) as caught:
        preview.preview(made, FakeStore(tmp_path))
    assert caught.value.render().splitlines()[-1] == f"help: {help}"


def test_cached_steps_need_nothing(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_facts", lambda device: replace(MACHINE, memory=10**6))
    monkeypatch.setattr(machine, "free_disk", lambda folder: 0)
    preview.preview(plan, FakeStore(tmp_path, done={step.key for step in plan.steps}))


def test_memory_that_is_in_use_is_a_note(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_facts", lambda device: replace(MACHINE, memory_available=10**9))
    monkeypatch.setattr(FactsFlow, "cost", lambda self, step: Cost(3 * 10**9 if step.id == "gptq" else 1, 0, 0, 1.0))
    found = preview.preview(plan, FakeStore(tmp_path))
    assert found.notes == ("step `gptq` needs 3.0 GB of memory; 1.0 GB are free now",)


def test_a_disk_that_is_too_small(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda folder: 10**9)
    monkeypatch.setattr(FactsFlow, "cost", lambda self, step: Cost(1, 3 * 10**8, 2 * 10**8, 1.0))
    with pytest.raises(MachineError) as caught:
        preview.preview(plan, FakeStore(tmp_path))
    assert caught.value.render() == (
        "error[R502]: the steps write 1.2 GB and need 0.20 GB more while they run; "
        f"the disk of {tmp_path} has 1.0 GB free\n"
        "help: free some space, remove old jobs with `runner jobs rm`, or choose another disk with `--jobs FOLDER`"
    )


def test_a_model_that_is_not_here_yet(plan: Plan, tmp_path: Path) -> None:
    away = replace(plan, model=replace(plan.model, path=None, source="org/name"))
    found = preview.preview(away, FakeStore(tmp_path))
    assert found.notes == ("`org/name` is downloaded first: 0.01 GB",)


def asking(plan: Plan, resources: dict[str, object]) -> Plan:
    steps = tuple(replace(step, resources=resources) if step.id == "gptq" else step for step in plan.steps)
    return replace(plan, steps=steps)


SMALL = Offer("this machine", (Node(2, 24 * 10**9),))
EPYC = Processor("AMD EPYC 9654", ("avx2", "avx512_bf16"))
XEON = Processor("Xeon 8480", ("amx_bf16", "avx2"), ("big",))
MIXED = Offer("the cluster", (Node(8, 24 * 10**9, processor=EPYC), Node(4, 24 * 10**9, processor=XEON)))
CLUSTER = Offer("the Ray cluster", (Node(4, 8 * 10**9, 1.0, {"ssd": 1.0}), Node(32, 10**9)))


@pytest.mark.parametrize(
    ("resources", "offer", "expected"),
    [
        ({"cpus": 4}, SMALL, ("R701", "step `gptq` asks for 4 processors; this machine has 2 processors")),
        ({"gpus": 0.5}, SMALL, ("R701", "step `gptq` asks for 0.5 GPU; this machine has no GPU")),
        ({"memory": "40 GB"}, SMALL, ("R701", "step `gptq` asks for 40.0 GB of memory; this machine has 24.0 GB")),
        (
            {"custom": {"ssd": 1}}, SMALL,
            ("R702", "step `gptq` asks for 1 `ssd`; this machine has no such resource (it names none)"),
        ),
        (
            {"custom": {"tape": 1}}, CLUSTER,
            ("R702", "step `gptq` asks for 1 `tape`; the Ray cluster has no such resource (it has `ssd`)"),
        ),
        (
            {"processor": "avx9"}, CLUSTER,
            ("R702", "step `gptq` asks for a processor `avx9`; the Ray cluster has none that was measured"),
        ),
        (
            {"processor": "epyc 7"}, MIXED,
            ("R702", "step `gptq` asks for a processor `epyc 7`; the cluster has `AMD EPYC 9654` and `Xeon 8480`"),
        ),
        (
            {"processor": "amx_bf16", "cpus": 8}, MIXED,
            (
                "R701",
                (
                    "step `gptq` asks for 8 processors; the cluster, where a processor is `amx_bf16`, has 4 processors"
                ),
            ),
        ),
        ({"custom": {"ssd": 2}}, CLUSTER, ("R702", "step `gptq` asks for 2 `ssd`; the Ray cluster has 1")),
        (
            {"cpus": 16, "memory": "4 GB"}, CLUSTER,
            (
                "R701",
                (
                    "step `gptq` asks for 16 processors, 4.0 GB of memory, no GPU on one machine; the Ray cluster has "
                    "4 processors, 8.0 GB of memory, 1 GPU, 1 `ssd`; 32 processors, 1.0 GB of memory, no GPU"
                ),
            ),
        ),
    ],
)  # fmt: skip
def test_resources_that_are_not_there_are_refused(
    plan: Plan, tmp_path: Path, resources: dict[str, object], offer: Offer, expected: tuple[str, str]
) -> None:
    asked = asking(plan, resources)
    with pytest.raises(machine.MachineRefusal) as caught:
        preview.preview(asked, FakeStore(tmp_path), offer=offer)
    (complaint,) = caught.value.diagnostics
    assert (complaint.code, complaint.message) == expected
    assert complaint.help == "ask for less, or use an executor that has it (`--executor`)"
    done = FakeStore(tmp_path, done={step.key for step in plan.steps})
    assert preview.preview(asked, done, offer=offer).forecasts[2].state == "cached"


def test_resources_that_are_there_change_no_key(plan: Plan, tmp_path: Path) -> None:
    found = preview.preview(asking(plan, {"cpus": 2, "memory": "1.5 GiB"}), FakeStore(tmp_path), offer=SMALL)
    assert [f.step.key for f in found.forecasts] == [step.key for step in plan.steps]
    demand = demand_of(found.forecasts[2].step, "cpu", 10**9)
    assert (demand.cpus, demand.memory, demand.gpus) == (2, 3 * 2**29, 0.0)
    assert demand_of(replace(plan.steps[2], processes=2), "cuda").gpus == 2.0

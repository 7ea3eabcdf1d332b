"""Keys and refusals are about the processors and GPUs that compute, not about those of the machine that plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runner.errors import MachineError, RecipeError
from runner.plan import machine, resources
from runner.plan.resolve import resolve
from runner.plan.resources import Node, Offer, Processor
from runner.plan.types import Plan
from runner.recipe.load import load

OLD = Processor("AMD EPYC 7742", ("avx2",), ("cheap",))
NEW = Processor("AMD EPYC 9654", ("avx2", "avx512_bf16"))
MIXED = Offer("the Ray cluster", (Node(8, 24 * 10**9, processor=OLD), Node(8, 24 * 10**9, processor=NEW)))

RECIPE = """\
version: 1
name: compiled
model: {source: demo:tiny-llama}
steps:
  - build.compile: {}
"""


def planned(tmp_path: Path, asked: str, offer: Offer | None, device: str = "cpu") -> Plan:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE + (f"    resources: {{processor: {asked}}}\n" if asked else ""))
    return resolve(load(file), device=device, offer=offer)


def test_a_key_has_the_processor_of_the_class_that_is_asked_for(tmp_path: Path) -> None:
    old, new = (planned(tmp_path, name, MIXED).steps[0] for name in ("EPYC 7", "avx512_bf16"))
    assert old.key != new.key
    assert planned(tmp_path, "cheap", MIXED).steps[0].key == old.key
    assert planned(tmp_path, "", Offer("a cluster", MIXED.nodes[1:])).steps[0].key == new.key
    here = replace(machine.machine_facts("cpu"), instructions=NEW.instructions)
    assert resources.candidates(planned(tmp_path, "EPYC 9654", MIXED).recipe.steps[0], here, MIXED) == [
        ("AMD EPYC 9654", here)
    ]


def test_a_result_that_depends_on_which_processor_it_meets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, "", MIXED)
    (complaint,) = caught.value.diagnostics
    assert (complaint.code, complaint.message, complaint.help) == (
        "R716",
        (
            "what `compile` makes depends on the processor, and machines that may run it have `AMD EPYC 7742` and "
            "`AMD EPYC 9654`"
        ),
        "name one, or an instruction set that only one has, with `resources: {processor: …}`",
    )
    assert complaint.span is not None
    assert complaint.span.line == 5
    with pytest.raises(RecipeError):
        planned(tmp_path, "EPYC", MIXED)


def test_a_machine_that_was_not_measured_counts_as_this_one(tmp_path: Path) -> None:
    unknown = Offer("the Slurm cluster", (Node(8, 24 * 10**9, processor=Processor("", classes=("genoa",))),))
    assert planned(tmp_path, "genoa", unknown).steps[0].key == planned(tmp_path, "", None).steps[0].key


def test_the_device_is_what_the_executor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu = Offer("the Ray cluster", (Node(8, 10**9, 2.0, {"accelerator_type:H100": 1.0}),))
    monkeypatch.setattr(machine, "package_version", lambda package: "2.13.0")
    monkeypatch.setattr(machine, "find_gpu", lambda: None)
    assert resources.device_of(None, "auto") == "cpu"
    assert resources.device_of(with_gpu, "auto") == "cuda"
    assert resources.device_of(with_gpu, "cpu") == "cpu"
    assert resources.device_of(MIXED, "auto") == "cpu"
    facts = resources.machine_of(with_gpu, "cuda")
    assert (facts.device, facts.gpu_name, facts.flops) == ("cuda", "H100", machine.gpu_flops("H100"))
    with pytest.raises(MachineError) as caught:
        resources.device_of(MIXED, "cuda")
    assert caught.value.render() == (
        "error: the device `cuda` was asked for, but the Ray cluster has no GPU\nhelp: use `--device cpu`"
    )
    monkeypatch.setattr(machine, "package_version", lambda package: "2.13.0+cpu")
    assert resources.device_of(with_gpu, "auto") == "cpu"
    with pytest.raises(MachineError, match="built for the CPU alone"):
        resources.device_of(with_gpu, "cuda")

"""`evaluate.latency`: figures of a fresh process. Nothing here asserts on seconds."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.contracts.step_kind import Inputs
from runner.errors import Interrupted, MachineError, StepFailed
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.runtime import open as runtimes
from runner.runtime import timing
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host
from tests.runtime.test_greedy import Counting

KIND = "evaluate.latency"
SMALL: dict[str, Any] = {"prompt_tokens": 8, "new_tokens": 4, "batch_size": 2, "warmup": 1, "repetitions": 3}


@pytest.mark.nightly
def test_a_checkpoint(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    host = Host(tmp_path, KIND, folder, **SMALL)
    result = find(KIND).run(host)
    assert set(result.metrics) == set(find(KIND).METRICS) - {"gpu_memory"}
    assert result.metrics["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert 100 << 20 < result.metrics["memory"] < 4 << 30
    details = result.details
    assert [len(details[name]) for name in ("prefill_seconds", "decode_seconds")] == [3, 3]
    middle = sorted(details["decode_seconds"])[1]
    assert result.metrics["decode_tokens_per_second"] == pytest.approx(2 * 4 / middle)
    assert [(e["done"], e["total"]) for e in host.events] == [(i, 4) for i in range(1, 5)]


def test_the_steps_of_a_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Counting()
    monkeypatch.setattr(runtimes, "open", lambda *arguments: runtime)
    heard: list[int] = []
    settings = timing.Settings("", "cpu", 1, 0, 5, 2, 3, 1, 2)
    found = timing.measure(settings, heard.append)
    assert runtime.calls == [5, 1, 1] * 3
    assert heard == [1, 2, 3]
    assert (len(found.prefill), len(found.decode), found.runtime, found.gpu_memory) == (2, 2, "counting", None)


@pytest.mark.parametrize(("text", "kind", "message"), [
    ('{"format": "pickle"}', StepFailed, "has the format \"pickle\"; known are "),
    ("{", StepFailed, "cannot be read as JSON: "),
], ids=["unknown", "torn"])  # fmt: skip
def test_the_errors_of_the_other_process_are_this_ones(
    tmp_path: Path, text: str, kind: type[Exception], message: str
) -> None:
    folder = tiny.save(tmp_path / "model")
    (folder / "engine.json").write_text(text)
    with pytest.raises(kind, match=r"engine\.json") as caught:
        find(KIND).run(Host(tmp_path, KIND, folder, **SMALL))
    assert message in str(caught.value)


def test_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save(tmp_path / "model")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(StepFailed) as caught:
        find(KIND).run(Host(tmp_path, KIND, folder, **SMALL))
    assert caught.value.message == "the measuring process died (exit code 1)"
    assert caught.value.help == "its last words are in the log of the step"


@pytest.mark.nightly
def test_it_stops_when_asked(tmp_path: Path) -> None:
    class Stopped(Host):
        def safe_point(self) -> None:
            if self.events:
                raise Interrupted("stopped")

    host = Stopped(tmp_path, KIND, tiny.save(tmp_path / "model"), **SMALL | {"repetitions": 9999})
    with pytest.raises(Interrupted):
        find(KIND).run(host)


def inputs(folder: Path, **engine: int) -> Inputs:
    checkpoint = facts(folder, "demo")
    made = replace(checkpoint, engine={"format": "onnx", **engine} if engine else None)
    return Inputs(made, {}, {}, machine_facts("cpu"))


def test_check(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")

    def complaints(given: Inputs, **params: Any) -> list[tuple[str, str, str | None, tuple[str | int, ...]]]:
        host = Host(tmp_path, KIND, folder, **params)
        return [(d.code, d.message, d.help, d.path) for d in find(KIND).check(host.params, given)]

    assert complaints(inputs(folder), **SMALL) == []
    assert complaints(inputs(folder)) == [
        ("R476", "`prompt_tokens` and `new_tokens` are 160 together; the model runs at most 64", "lower one of them",
         ("prompt_tokens",)),
    ]  # fmt: skip
    assert complaints(inputs(folder, context=16, max_batch=1), **SMALL | {"new_tokens": 9}) == [
        ("R476", "`prompt_tokens` and `new_tokens` are 17 together; the engine runs at most 16", "lower one of them",
         ("prompt_tokens",)),
        ("R476", "`batch_size` is 2; the engine runs at most 1 sequences at once",
         "lower it to 1, or build it for more", ("batch_size",)),
    ]  # fmt: skip
    needy = replace(inputs(folder), checkpoint=replace(inputs(folder).checkpoint, engine={"format": "tensorrt"}))
    assert complaints(needy, **SMALL) == [
        ("R504", "a TensorRT engine runs only on an NVIDIA GPU; this step runs on the CPU",
         "apply it on a machine with a GPU, or take the engine's graph: `from` a step of `build.onnx`", ()),
    ]  # fmt: skip
    cost = find(KIND).estimate(Host(tmp_path, KIND, folder).params, inputs(folder))
    assert cost.memory > 440 << 20


def test_a_missing_package_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    error = MachineError("needs a GPU", "use one")

    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(timing, "measure", refuse)
    monkeypatch.setattr(timing, "_write_message", lambda **message: said.append(message))
    monkeypatch.setattr(os, "_exit", lambda code: None)
    settings = {"folder": "", "device": "cpu", "threads": 1, "seed": 0, **SMALL}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(settings) + "\n"))
    timing.main()
    assert said == [{"error": {"message": "needs a GPU", "help": "use one", "exit_code": 4}}]

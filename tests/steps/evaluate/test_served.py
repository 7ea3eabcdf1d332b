"""`evaluate.served` with a real server over transformers' own model code (tests/runtime/serving/openai_server.py)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from runner.contracts.context import DataFacts
from runner.contracts.step_kind import Inputs, Result
from runner.errors import Interrupted, MachineError, StepFailed
from runner.model.architecture.inspect import facts
from runner.plan.machine import machine_facts
from runner.steps.kinds import find
from runner.system import process_tree
from tests import tiny
from tests.host import Host

KIND = "evaluate.served"
SERVER = Path(__file__).parents[2] / "runtime" / "serving" / "openai_server.py"
ARGUMENTS = [str(SERVER), "serve", "{model}", "--host", "{host}", "--port", "{port}"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.byte_level(tiny.save(tmp_path_factory.mktemp("model"), vocab_size=29))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server as a program that takes vLLM's command line."""
    path = tmp_path_factory.mktemp("bin") / "vllm"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = process_tree.descendants(os.getpid())
    yield
    assert process_tree.descendants(os.getpid()).items() <= before.items()


def host(folder: Path, model: Path, **params: Any) -> Host:
    ids = torch.randint(3, 29, (3, 24), generator=torch.Generator().manual_seed(1))
    given = {"prompt_tokens": 6, "new_tokens": 8, "concurrency": [1, 3], "requests": 3, "windows": 2, **params}
    return Host(folder, KIND, model, ids, others={"against": model}, **given)


@pytest.mark.nightly
def test_a_server_is_measured_as_vllm_is(tmp_path: Path, model: Path, program: Path) -> None:
    """Token ids, echoes and usage: perplexity is that of evaluate.perplexity on the same windows."""
    step = host(tmp_path, model, server="vllm", program=str(program))
    result: Result = find(KIND).run(step)
    reference = Host(tmp_path / "perplexity", "evaluate.perplexity", model, step.data("data")[:2])
    expected = find("evaluate.perplexity").run(reference).metrics
    metrics = dict(result.metrics)
    assert metrics.pop("perplexity") == pytest.approx(expected["perplexity"], rel=1e-5)
    rates = [metrics.pop(f"tokens_per_second/{number}") for number in (1, 3)]
    first = [metrics.pop(f"time_to_first_token/{number}") for number in (1, 3)]
    assert all(0 < rate < 1e5 for rate in rates)
    assert all(0 < seconds < 8 * 3 / rates[0] + 1 for seconds in first)
    assert 0 < metrics.pop("load_seconds") < 120
    if sys.platform.startswith("linux"):
        assert 5e7 < metrics.pop("memory") < 4e9
    assert metrics == {
        "loads": 1, "greedy_agreement": 1.0, "agreement_but_ties": 1.0, "first_difference": 8, "largest_gap": 0.0,
        "tokenized_alike": 1.0, "prompts": 3, "tokens": 2 * 23,
    }  # fmt: skip
    assert result.details["differences"] == []
    assert result.details["tokens_counted_by"] == "the server"
    assert [event["phase"] for event in step.events if event["done"] == event["total"]] == [
        "the checkpoint's tokens", "agreement", "perplexity", "speed",
    ]  # fmt: skip


@pytest.mark.nightly
def test_a_server_of_another_model_that_gives_text_alone(tmp_path: Path, model: Path) -> None:
    """Differences show with their gaps; what it does not give is left out, and said."""
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        other.lm_head.weight[3:10] *= 1.7
    other.save_pretrained(tmp_path / "other")
    folder = tiny.byte_level(tmp_path / "other")
    step = host(tmp_path, folder, server="other", program=sys.executable, arguments=[*ARGUMENTS, "--text-only"],
                concurrency=[2], against="model")  # fmt: skip
    step.inputs["against"] = replace(step.inputs["against"], path=model)
    result = find(KIND).run(step)
    assert result.metrics["greedy_agreement"] < 1
    assert result.metrics["largest_gap"] > 0.1
    first = result.metrics["first_difference"]
    assert min(each["equal_tokens"] for each in result.details["differences"]) == first < 8
    assert not {"perplexity", "tokenized_alike"} & set(result.metrics)
    assert result.details["no_perplexity"] == 'it answered 400: {"error": {"message": "echo is not supported"}}'
    assert result.details["tokens_counted_by"] == "pieces of streams"


def test_a_server_that_does_not_start(tmp_path: Path, model: Path) -> None:
    arguments = ["-c", "raise RuntimeError('no kernel for {port}'[:13])"]
    with pytest.raises(StepFailed) as caught:
        find(KIND).run(host(tmp_path, model, server="other", program=sys.executable, arguments=arguments))
    message = (
        "the server ended with status 1; its last words:\n    Traceback (most recent call last):\n"
        '      File "<string>", line 1, in <module>\n    RuntimeError: no kernel for'
    )
    assert caught.value.message == message
    allowed = host(tmp_path, model, server="other", program=sys.executable, arguments=arguments, required=False)
    result = find(KIND).run(allowed)
    assert result.metrics == {"loads": 0}
    assert result.details["why"] == message


def test_a_server_that_dies_meanwhile_and_a_port_in_use(tmp_path: Path, model: Path) -> None:
    arguments = [*ARGUMENTS, "--canned", "--dies-at", "2"]
    with pytest.raises(StepFailed) as caught:
        find(KIND).run(host(tmp_path, model, server="other", program=sys.executable, arguments=arguments))
    lines = caught.value.message.splitlines()
    assert lines[0] == "the server ended with status 3; its last words:"
    assert lines[-1] == "    ValueError: no more memory for caches"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        step = host(tmp_path, model, server="other", program=sys.executable, arguments=ARGUMENTS,
                    port=other.getsockname()[1])  # fmt: skip
        with pytest.raises(MachineError, match=r"port \d+ of 127\.0\.0\.1 cannot be had: Address already in use"):
            find(KIND).run(step)


class Stopping(Host):
    """A host that is stopped while the server measures."""

    def safe_point(self) -> None:
        if any(event["phase"] == "agreement" for event in self.events):
            raise Interrupted("stopped")


def test_a_stop_request_ends_the_server(tmp_path: Path, model: Path, program: Path) -> None:
    step = host(tmp_path, model, server="vllm", program=str(program), arguments=["--canned"])
    step.__class__ = Stopping
    with pytest.raises(Interrupted):
        find(KIND).run(step)


def complaints(model: Path, *, environment: bool = False, **params: Any) -> list[tuple[str, str, str | None]]:
    checkpoint = facts(model, "demo")
    if params.pop("engine", False):
        checkpoint = replace(checkpoint, engine={"format": "gguf", "file": "model.gguf"})
    checkpoint = replace(checkpoint, adapter=params.pop("adapter", None))
    data = DataFacts("text", 6, 24, 1000, "0" * 64)
    inputs = Inputs(checkpoint, {"against": checkpoint}, {"data": data}, machine_facts("cpu"), 1, environment)
    given = {"prompt_tokens": 6, "new_tokens": 8, **params}
    step = Host(model.parent / "check", KIND, model, torch.zeros(1, 1), **given)
    return [(each.code, each.message, each.help) for each in find(KIND).check(step.params, inputs)]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_an_adapter_is_served_with_its_weights(tmp_path: Path, model: Path, program: Path) -> None:
    """Perplexity and tokens are those of `evaluate.perplexity`, which applies it; the weights alone give others."""
    adapted = tmp_path / "adapted"
    shutil.copytree(model, adapted)
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    lora = get_peft_model(dense, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    draw = torch.Generator().manual_seed(2)
    for name, parameter in lora.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.3, generator=draw)
    lora.save_pretrained(str(adapted / "adapter"))
    short: dict[str, Any] = {"prompts": 1, "concurrency": [1], "requests": 1}
    step = host(tmp_path / "step", adapted, server="vllm", program=str(program), **short)
    served: Result = find(KIND).run(step)
    expected, alone = (
        find("evaluate.perplexity").run(
            Host(tmp_path / f"p-{folder.name}", "evaluate.perplexity", folder, step.data("data")[:2])
        ).metrics["perplexity"]
        for folder in (adapted, model)
    )  # fmt: skip
    assert served.metrics["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert abs(expected / alone - 1) > 1e-3
    assert served.metrics["greedy_agreement"] == 1


def test_servers_that_would_leave_out_an_adapter(model: Path) -> None:
    lora = {"r": 16}
    message = "what is served would be the weights without the adapter that they carry: "
    help = "let `recover.lora` merge it, with `merge: requantize` into quantized weights"
    assert complaints(model, server="vllm", environment=True, adapter=lora) == []
    for given, server, why in (
        ({"r": 600}, "vllm", "vLLM takes adapters up to rank 512"),
        ({"r": 16, "use_dora": True}, "vllm", "vLLM has no DoRA"),
        ({"r": 16, "target_parameters": ["a.experts.down_proj"]}, "vllm",
         "whether vLLM takes an adapter of experts has not been tried"),
        ({"r": 16, "rank_pattern": {"q_proj": 8}}, "vllm",
         "vLLM leaves out `rank_pattern`, by which modules have factors of their own"),
        (lora, "transformers", "`transformers serve` loads no adapter from the folder of a checkpoint"),
    ):  # fmt: skip
        assert complaints(model, server=server, environment=True, adapter=given) == [("R868", message + why, help)]
    own: dict[str, Any] = {"server": "other", "program": "sh", "adapter": lora}
    assert complaints(model, **own, arguments=["--port", "{port}"]) == [
        ("R868", f"{message}no argument of the server has `{{adapter}}`, the folder of the adapter", help)
    ]
    assert complaints(model, **own, arguments=["--port", "{port}", "--lora", "{adapter}"]) == []
    doubled = complaints(model, **own, arguments=["--port", "{port}", "--note", "{{adapter}}"])
    assert [code for code, _, _ in doubled] == ["R868"]
    assert complaints(model, **own, engine=True, arguments=["--port", "{port}"]) == []  # its graph holds it
    none: dict[str, Any] = {
        "server": "other",
        "program": "sh",
        "arguments": ["--port", "{port}", "--lora", "{adapter}"],
    }
    assert complaints(model, **none) == [
        ("R861", "`{adapter}` in `arguments` is the folder of an adapter, and what is served has none beside it",
         "leave that argument out"),
    ]  # fmt: skip


def test_complaints(model: Path, program: Path) -> None:
    assert complaints(model, server="vllm", program=str(program)) == []
    assert complaints(model, server="vllm", environment=True) == []
    assert complaints(model, server="vllm", program="no-such-server") == [
        ("R862", "there is no program `no-such-server` on the PATH, and the step has no `env`",
         "install vllm, name `program`, or give the step an environment"),
    ]  # fmt: skip
    assert complaints(model, server="other") == [
        ("R861", "`server: other` names no `program`",
         "name it, and give its `arguments`: [--model, '{model}', --port, '{port}']"),
    ]  # fmt: skip
    assert complaints(model, server="other", program="sh", arguments=["--port", "{prot}"]) == [
        ("R861", "no argument of the server has `{port}`: it would not serve where it is asked",
         "add the option that names its port"),
        ("R861", "`prot` in `arguments` is nothing that a step fills in",
         ("these are: `{model}`, `{adapter}`, `{host}`, `{port}`, `{name}`, `{threads}`, `{parallel}`; "
          "a brace itself is doubled")),
    ]  # fmt: skip
    assert complaints(model, server="vllm", environment=True, engine=True) == [
        ("R863", "vllm cannot load it: it loads checkpoints, not engines",
         "choose another scheme, format or server: docs/serving.md has the table"),
    ]  # fmt: skip
    assert complaints(model, server="llama.cpp", environment=True) == [
        ("R863", "llama.cpp cannot load it: it runs files of `build.gguf`",
         "choose another scheme, format or server: docs/serving.md has the table"),
    ]  # fmt: skip
    assert complaints(model, server="llama.cpp", environment=True, engine=True) == []
    assert complaints(model, server="vllm", environment=True, prompt_tokens=30, new_tokens=40) == [
        ("R476", "`prompt_tokens` is 30; the windows of the data have 24 tokens", "lower it to 24"),
        ("R476", "`prompt_tokens` and `new_tokens` are 70 together; the model has 64 positions", "lower one of them"),
    ]  # fmt: skip


@pytest.mark.nightly
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the supervisor's reach is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_of_an_apply_that_is_killed(
    number: signal.Signals, tmp_path: Path, model: Path, program: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    texts = tmp_path / "text.txt"
    texts.write_text("abcdefgh ijklmnop " * 400)
    recipe.write_text(
        f"version: 1\nname: served\nmodel: {{source: {model}}}\n"
        f"data: {{text: {{source: {texts}, samples: 8, sequence_length: 24}}}}\n"
        f"steps:\n  - evaluate.served: {{server: vllm, program: {program}, data: text, prompt_tokens: 6, new_tokens: 8,"
        " requests: 100000}\n"
    )
    apply = subprocess.Popen(
        [sys.executable, "-m", "runner", "apply", str(recipe), "--jobs", str(tmp_path / "jobs")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    log, found = "", dict[int, int]()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and apply.poll() is None:
        found |= process_tree.descendants(apply.pid)
        log = "".join(file.read_text() for file in (tmp_path / "jobs").rglob("events.jsonl"))
        if '"phase":"perplexity"' in log.replace(" ", "") and len(found) >= 4:
            break
        time.sleep(0.2)
    assert len(found) >= 4, log
    time.sleep(1)
    found |= process_tree.descendants(apply.pid)
    apply.send_signal(number)
    apply.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(process_tree.runs(*each) for each in found.items()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [each for each in found.items() if process_tree.runs(*each)]

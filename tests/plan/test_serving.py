"""`serve` of a recipe: what the plan says of every artifact, and what it refuses."""

from __future__ import annotations

import pytest

from runner.errors import Diagnostic, RecipeError
from runner.plan.resolve import resolve
from runner.plan.types import Plan
from runner.recipe.load import loads

HEAD = 'version: 1\nname: served\nmodel: {source: "demo:tiny-llama"}\n'


def planned(serve: str, *steps: str) -> Plan:
    entries = "".join(f"  - {step}\n" for step in steps)
    return resolve(loads(f"{HEAD}serve: {serve}\nsteps:\n{entries}", "served.yaml"))


def refused(serve: str, *steps: str) -> Diagnostic:
    with pytest.raises(RecipeError) as caught:
        planned(serve, *steps)
    (found,) = caught.value.diagnostics
    return found


def test_every_artifact_has_a_verdict_of_every_server() -> None:
    plan = planned("{vllm: any, onnxruntime: any, gpu: cpu}", "quantize.rtn: {bits: 4, group_size: 64}", "build.onnx:")
    assert [(each.step, each.verdict.server, each.verdict.how) for each in plan.served] == [
        ("rtn", "vllm", "native"), ("rtn", "onnxruntime", "refused"),
        ("onnx", "vllm", "refused"), ("onnx", "onnxruntime", "native"),
    ]  # fmt: skip
    assert plan.warnings == ()


def test_it_changes_no_key() -> None:
    step = "quantize.rtn: {bits: 4, group_size: 64}"
    assert planned("{vllm: any}", step).key == planned("{transformers: any}", step).key


def test_a_server_that_cannot_load_the_result() -> None:
    found = refused("{transformers: any, vllm: any}", "quantize.rtn: {bits: 3, group_size: 64}")
    assert (found.code, found.message, found.help) == (
        "R655",
        (
            "`serve` names vllm, which cannot load the result of `rtn`: vLLM has no kernels for this way of storing "
            "weights"
        ),
        "choose another scheme or format (docs/serving.md has the table), or leave the server out",
    )
    assert found.span is not None
    assert (found.span.line, found.span.column) == (4, 34)
    found = refused("{vllm: any, gpu: cpu}", "quantize.rtn: {bits: 8}")
    assert found.message == (
        "`serve` names vllm on cpu, which cannot load the result of `rtn`: its CPU build has no kernels for 8-bit "
        "weights"
    )


@pytest.mark.parametrize(("params", "message"), [
    ("variant: dora", "`serve` names vllm, which cannot load the result of `lora`: vLLM has no DoRA"),
    ("variant: lora", None),
])  # fmt: skip
def test_an_adapter_that_a_server_does_not_load(params: str, message: str | None) -> None:
    data = 'data: {text: {source: "demo:stdlib", split: calibration, samples: 8, sequence_length: 64}}\n'
    lora = f"recover.lora: {{data: text, teacher: model, loss: next_token, rank: 4, merge: keep, {params}}}"
    serve = f"{{vllm: any}}\n{data.rstrip()}"
    if message is None:
        assert planned(serve, lora).warnings == ()
        return
    found = refused(serve, lora)
    assert (found.code, found.message, found.help) == (
        "R655", message,
        "let `recover.lora` merge it, with `merge: requantize` into quantized weights, or leave the server out",
    )  # fmt: skip


def test_an_adapter_of_tensorrt_llm_has_not_been_tried() -> None:
    data = 'data: {text: {source: "demo:stdlib", split: calibration, samples: 8, sequence_length: 64}}'
    lora = "recover.lora: {data: text, teacher: model, loss: next_token, rank: 4, merge: keep}"
    [warning] = planned(f"{{tensorrt-llm: any}}\n{data}", lora).warnings
    assert (warning.code, warning.message) == (
        "R656",
        (
            "nothing is known of whether tensorrt-llm loads the result of `lora`: whether it takes an adapter beside "
            "weights has not been tried"
        ),
    )


def test_a_server_without_a_result() -> None:
    found = refused("{llama.cpp: any}", "quantize.rtn: {bits: 4, group_size: 32}")
    assert (found.code, found.message, found.help) == (
        "R655",
        "`serve` names llama.cpp, and no step makes what it loads",
        "add a step of `build.gguf`, or leave llama.cpp out",
    )


def test_what_nobody_knows_is_a_warning() -> None:
    plan = planned('{vllm: "0.9"}', "quantize.rtn: {bits: 4, group_size: 64}")
    assert [(each.code, each.message) for each in plan.warnings] == [(
        "R656",
        (
            "nothing is known of whether vllm loads the result of `rtn`: the table is about vllm 0.14 and later; "
            "`serve` allows 0.9"
        ),
    )]  # fmt: skip

"""Steps on the layer stream: gates on the error of a layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import GateFailed
from runner.steps.quantize import gptq, rtn
from tests import tiny
from tests.host import Host


def host(folder: Path, kind: str, model: Path) -> Host:
    ids = tiny.tokens(4, 16) if kind == "quantize.gptq" else None
    return Host(folder, kind, model, ids, bits=2, group_size=32)


@pytest.mark.parametrize("kind", [gptq, rtn], ids=["output", "weight"])
def test_a_gate_ends_the_step_at_the_first_layer_that_misses_it(kind: object, tmp_path: Path) -> None:
    name = "quantize.gptq" if kind is gptq else "quantize.rtn"
    module = gptq if kind is gptq else rtn
    model = tiny.save(tmp_path / "model")
    whole = host(tmp_path / "whole", name, model)
    result = module.run(whole)
    key = "error" if kind is gptq else "weight_error"
    errors = [
        sum(m[key] for m in layer["modules"].values()) / len(layer["modules"]) for layer in result.details["layers"]
    ]
    assert result.metrics["layer_error"] == max(errors)
    worst = max(range(3), key=errors.__getitem__)
    first = next(index for index, error in enumerate(errors) if error > sorted(errors)[1])
    assert first == worst

    gated = host(tmp_path / "gated", name, model)
    gated.limits = {"layer_error": sorted(errors)[1]}
    with pytest.raises(GateFailed) as stopped:
        module.run(gated)
    assert stopped.value.render() == (
        f"error: stopped after layer {worst + 1} of 3, which misses the gate on `layer_error`\n"
        "help: raise the limit, and the step goes on after that layer; or change the step so that it loses less there"
    )
    assert gated.layers() == list(range(1, worst + 2))
    gate = gated.events[-1]
    assert (gate["event"], gate["metric"], gate["value"]) == ("gate", "layer_error", errors[worst])
    assert gate["passed"] is False
    assert gate["text"] == f"`layer_error` is {max(errors):.4g} in layer {worst + 1}, above its limit {gate['limit']:g}"

    with pytest.raises(GateFailed):  # the layer is there, and misses the same limit
        module.run(gated)
    assert gated.layers() == list(range(1, worst + 2))
    gated.limits = {"layer_error": max(errors)}
    assert module.run(gated).metrics == result.metrics
    assert gated.layers() == [1, 2, 3]
    for file in sorted(whole.out_dir.glob("*.safetensors")):
        assert (gated.out_dir / file.name).read_bytes() == file.read_bytes()

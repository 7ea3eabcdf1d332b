"""Tables that multiply, rounded by GPTQ from the inputs of the head, in graphs that onnxruntime runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from runner.contracts.context import DataFacts
from runner.contracts.step_kind import Inputs
from runner.errors import Interrupted
from runner.export import table_layouts, tables
from runner.methods import gptq as gptq_math
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.quantization.scheme import integers
from runner.plan.machine import machine_facts
from runner.runtime.transformers import load
from runner.steps import forward_cost
from runner.steps.kinds import find
from tests.export.exported import packed, pair, prompts
from tests.host import Host
from tests.methods.naive import Points, dampened, gptq
from tests.tiny import save, tokens

KIND = "build.onnx"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
IDS = tokens(8, 24)


def built(folder: Path, checkpoint: Path, ids: torch.Tensor | None = IDS, **params: Any) -> Path:
    host = Host(folder, KIND, checkpoint, ids, **{"embedding": "int4", **params})
    find(KIND).run(host)
    return host.out_dir


def moment(checkpoint: Path) -> torch.Tensor:
    """The second moment of the head's inputs, as transformers computes them, in float64."""
    model = load(checkpoint, "cpu", torch.float32, exact=True).model
    with torch.no_grad():
        x = model.model(IDS).last_hidden_state.flatten(0, 1).double()
    found: torch.Tensor = 2 / len(x) * x.T @ x
    return found


def stored(engine: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The integers [rows, columns] of 4 bits and scales [rows, blocks] of the tables in a graph."""
    graph = onnx.load(engine / "onnx/model.onnx").graph
    values = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    found = {}
    for name in (EMBEDDING, HEAD):
        if f"{name}.scales" in values:
            fields = values[f"{name}.weight"]
            halves = torch.stack([fields & 15, fields >> 4], -1).flatten(1)
            found[name] = halves, values[f"{name}.scales"].float().reshape(len(fields), -1)
    return found


def expected(weight: torch.Tensor, h: torch.Tensor, scales: torch.Tensor) -> list[list[int]]:
    """GPTQ of a table in float64, on grids with these scales."""
    diagonal = h.diagonal().tolist()
    order = sorted(range(len(diagonal)), key=lambda j: -diagonal[j])
    grid = Points(
        scales.double().tolist(), [[8] * scales.shape[1]] * len(scales), 16, weight.shape[1] // scales.shape[1]
    )
    return gptq(weight, dampened(h, tables.DAMPENING), grid, order)


@pytest.mark.parametrize("name", ["llama_tied", "llama"])
def test_the_table_that_multiplies_is_gptqs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tied one is in the graph once; an embedding of its own is rounded to nearest, as without data."""
    monkeypatch.setattr(tables, "ROWS", 40)  # of 96: in three pieces
    checkpoint = save(tmp_path / "model", name)
    found, plain = (stored(built(tmp_path / str(ids is None), checkpoint, ids)) for ids in (IDS, None))
    multiplied = EMBEDDING if name == "llama_tied" else HEAD
    assert sorted(found) == sorted({EMBEDDING, multiplied})
    values, scales = found[multiplied]
    weight, h = load_file(checkpoint / "model.safetensors")[f"{multiplied}.weight"].float(), moment(checkpoint)
    assert values.tolist() == expected(weight, h, scales)

    def lost(integers: torch.Tensor, scales: torch.Tensor) -> float:
        error = ((integers.double() - 8) * scales.double().repeat_interleave(32, 1)) - weight.double()
        return float((error @ h * error).sum())

    assert lost(values, scales) < 0.7 * lost(*plain[multiplied])
    if name == "llama":
        assert all(torch.equal(one, other) for one, other in zip(found[EMBEDDING], plain[EMBEDDING], strict=True))


def test_the_graph_computes_with_the_table(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "model", "llama_tied")
    engine = built(tmp_path, checkpoint)
    ((values, scales),) = stored(engine).values()
    path = checkpoint / "model.safetensors"
    table = (values.float() - 8) * scales.repeat_interleave(32, 1)
    save_file({**load_file(path), f"{EMBEDDING}.weight": table}, path, metadata={"format": "pt"})
    ours, theirs = pair(engine, checkpoint)
    ids = prompts(2, 20)
    assert np.abs(ours.prefill(ids) - theirs.prefill(ids)).max() < 1e-4


def test_inputs_are_those_of_the_quantized_layers(tmp_path: Path) -> None:
    checkpoint = packed(tmp_path / "model", integers(4, 32, True), "llama_tied")
    path = checkpoint / "model.safetensors"
    ((values, scales),) = stored(built(tmp_path, checkpoint)).values()
    weight, h = load_file(path)[f"{EMBEDDING}.weight"].float(), moment(checkpoint)
    shares = [
        float((torch.tensor(expected(weight, each, scales)) == values).float().mean())
        for each in (h, moment(tmp_path / "model-dense"))
    ]
    assert shares[0] > 0.93  # a processor that has bfloat16 computes the layers in it
    assert shares[1] < 0.9


def test_a_column_that_no_input_reaches_stays_in_the_embedding(tmp_path: Path) -> None:
    """The last norm gives 0 there; what is gathered of it is not 0."""
    checkpoint = save(tmp_path / "model", "llama_tied")
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][5] = 0.0
    save_file(tensors, path, metadata={"format": "pt"})
    ((values, scales),) = stored(built(tmp_path, checkpoint)).values()
    column = tensors[f"{EMBEDDING}.weight"][:, 5].float()
    nearest = (column / scales[:, 0]).round().clamp(-8, 7) + 8
    assert torch.equal(values[:, 5].float(), nearest)
    assert int((values[:, 5] != 8).sum()) > 60


def test_an_interrupted_step_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the layers, in what comes after the last of them, and between rows of the table."""
    monkeypatch.setattr(tables, "ROWS", 40)
    checkpoint = save(tmp_path / "model", "llama_tied")
    whole = Host(tmp_path / "whole", KIND, checkpoint, IDS, embedding="int4")
    find(KIND).run(whole)
    phases = [event.get("phase") for event in whole.events if event["event"] == "progress"]
    assert phases.count("rounding the head") == 3
    stopped = Host(tmp_path / "stopped", KIND, checkpoint, IDS, stop_after=2, embedding="int4")
    with pytest.raises(Interrupted):
        find(KIND).run(stopped)
    stopped.stop_after = 3
    with pytest.raises(Interrupted):
        find(KIND).run(stopped)
    stopped.stop_after = None
    emit = stopped.emit

    def kill(event: str, **fields: Any) -> None:
        emit(event, **fields)
        if fields.get("phase") == "rounding the head" and fields["done"] == 80:
            raise KeyboardInterrupt

    stopped.emit = kill  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        find(KIND).run(stopped)
    stopped.emit = emit  # type: ignore[method-assign]
    find(KIND).run(stopped)
    assert stopped.layers() == [1, 2, 3]
    for file in ("onnx/model.onnx", "onnx/model.onnx_data", "engine.json", "README.md"):
        assert (stopped.out_dir / file).read_bytes() == (whole.out_dir / file).read_bytes(), file


def test_the_folder_tells_it(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "model", "llama_tied")
    host = Host(tmp_path, KIND, checkpoint, IDS, embedding="int8")
    result = find(KIND).run(host)
    engine = json.loads((host.out_dir / "engine.json").read_text())
    assert engine["tables"] == result.details["tables"] == {"rounding": "gptq", "calibration": [8, 24]}
    made = find(KIND).outcome(host.params, inputs(checkpoint)).engine
    assert made is not None
    assert {key: engine[key] for key in made} == made
    line = "- Token embedding and head: int8, where they multiply rounded by GPTQ from the head's inputs in 8 windows "
    assert f"\n{line}of 24 tokens.\n" in (host.out_dir / "README.md").read_text()


def inputs(checkpoint: Path) -> Inputs:
    data = {"data": DataFacts("calibration", 8, 24, IDS.nbytes, "0" * 64)}
    return Inputs(facts(checkpoint, "model"), {}, data, machine_facts("cpu"))


def complaints(
    given: Inputs, folder: Path, ids: torch.Tensor | None = IDS, **params: Any
) -> list[tuple[str, str, Any]]:
    host = Host(folder, KIND, folder, ids, **params)
    return [(d.code, d.message, d.help) for d in find(KIND).check(host.params, given)]


def test_data_that_have_no_effect_are_refused(tmp_path: Path) -> None:
    why = "`data` has no effect: it says how to round the table of integers that multiplies, and "
    tied = inputs(save(tmp_path / "tied", "llama_tied"))
    four = inputs(packed(tmp_path / "four", integers(4, 32, True), "llama_tied"))
    cases: list[tuple[Inputs, dict[str, Any]]] = [
        (tied, {}), (tied, {"embedding": "dense"}), (four, {"target": "tensorrt"}),
    ]  # fmt: skip
    for given, params in cases:
        asked = params.get("embedding", "auto")
        told = f"{why}`embedding: {asked}` leaves the tables of this model dense"
        assert complaints(given, tmp_path / "host", **params) == [("R418", told, "leave it out")]
    assert complaints(four, tmp_path / "host") == complaints(tied, tmp_path / "host", embedding="int4") == []
    own = facts(save(tmp_path / "own"), "model")
    head = own.tensors["lm_head.weight"]
    renamed = {"lm_head.weight_packed": replace(head, dtype="I32"), "lm_head.weight_scale": head}
    kept = {name: tensor for name, tensor in own.tensors.items() if name != "lm_head.weight"}
    with_head = replace(tied, checkpoint=replace(own, tensors={**kept, **renamed}))
    told = f"{why}the checkpoint has quantized its head already"
    assert complaints(with_head, tmp_path / "host", embedding="int8") == [("R418", told, "leave it out")]


def test_tables_of_4_bits_are_warned_of_without_data_alone(tmp_path: Path) -> None:
    given = inputs(save(tmp_path / "model", "llama_tied"))
    assert [code for code, *_ in complaints(given, tmp_path / "host", None, embedding="int4")] == ["R873"]
    assert table_layouts.warn({"data": "calibration"}, "int4") == []


def test_the_forecast_has_the_forward_and_the_solver(tmp_path: Path) -> None:
    given = inputs(save(tmp_path / "model", "llama_tied"))
    plain, costly = (
        find(KIND).estimate(Host(tmp_path / "host", KIND, tmp_path, ids, embedding="int4").params, given)
        for ids in (None, IDS)
    )
    forward = forward_cost.estimate_forward([given.checkpoint], given.data["data"], given.machine)
    assert costly.memory >= max(plain.memory, forward.memory)
    assert costly.scratch == forward.scratch
    assert costly.seconds > plain.seconds + forward.seconds
    assert costly.disk == plain.disk
    wide = replace(
        given.checkpoint, config=type(given.checkpoint.config).of({**given.checkpoint.config.raw, "hidden_size": 8192})
    )
    params = Host(tmp_path / "host", KIND, tmp_path, IDS, embedding="int4").params
    more = find(KIND).estimate(params, replace(given, checkpoint=wide)).memory - costly.memory
    assert more > 4 * 3 * 8192**2  # the moment, its order, its factor


def test_few_inputs_are_enough(tmp_path: Path) -> None:
    """Fewer tokens than columns: the moment has no full rank."""
    checkpoint = save(tmp_path / "model", "llama_tied")
    assert stored(built(tmp_path, checkpoint, IDS[:1, :8]))
    assert gptq_math.MAX_DAMPENING > tables.DAMPENING

"""`build.executorch`: what is refused and forecast; programs are built and run where the package is installed."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.contracts.context import DataFacts
from runner.contracts.step_kind import Inputs, Result
from runner.errors import StepFailed
from runner.export import executorch_layouts, executorch_sharing, table_layouts, tables
from runner.export.decoder import own_attention
from runner.export.executorch_program import StaticDecoder, Table, rounded_table
from runner.model.architecture.inspect import facts
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.scheme import integers
from runner.model.layerwise import head_inputs
from runner.model.layerwise.stream_run import SILENT, StreamInputs, StreamRun
from runner.plan.machine import machine_facts
from runner.runtime import open as runtimes
from runner.runtime.transformers import Reference, load
from runner.steps.kinds import find
from tests import tiny
from tests.host import Host
from tests.methods.naive import Points, dampened, gptq

KIND = "build.executorch"
NEEDS = pytest.mark.skipif(find_spec("executorch") is None, reason="the package executorch is not installed")


def quantized(folder: Path, name: str = "llama", dtype: torch.dtype = torch.bfloat16, **params: Any) -> Path:
    dense = tiny.byte_level(tiny.save(folder / "model", name, dtype=dtype, num_hidden_layers=1))
    host = Host(folder, "quantize.rtn", dense, **{"bits": 4, "group_size": 32, **params})
    find("quantize.rtn").run(host)
    return host.out_dir


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(tmp_path_factory.mktemp("checkpoint"))


def built(folder: Path, checkpoint: Path, **params: Any) -> tuple[Path, Result]:
    host = Host(folder, KIND, checkpoint, context=48, **params)
    return host.out_dir, find(KIND).run(host)


def complaints(checkpoint: Path, config: dict[str, Any] | None = None, **params: Any) -> list[tuple[str, str, Any]]:
    found = facts(checkpoint, "demo")
    if config:
        found = replace(found, config=type(found.config).of({**found.config.raw, **config}))
    given = Host(checkpoint.parent / "check", KIND, checkpoint, **params).params
    return [(d.code, d.message, d.help) for d in find(KIND).check(given, Inputs(found, {}, {}, machine_facts("cpu")))]


def test_what_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert complaints(checkpoint) == []
    assert complaints(checkpoint, context=100) == [("R864", "`context` is 100; the model has 64 positions", "lower it")]
    assert complaints(checkpoint, {"hidden_size": 48}, embedding="int4") == [
        ("R864", "`embedding` is int4; its groups of 32 columns do not divide 48", "use `embedding: int8`")
    ]
    (warned,) = complaints(checkpoint, embedding="int4")
    assert warned[0] == "R873"
    (unknown,) = complaints(checkpoint, {"model_type": "opt"})
    assert unknown[:2] == ("R477", "models of the type `opt` were not compared as ExecuTorch programs")
    small = quantized(tmp_path, group_size=16)
    message = (
        "`model.layers.0.mlp.down_proj` (as 6 more) has groups of 16 columns; XNNPACK takes multiples of 32 that "
        "divide a row"
    )
    assert complaints(small) == [("R478", message, "quantize with another `group_size`, such as 32")]


@pytest.mark.parametrize(("scheme", "columns", "expected"), [
    (integers(4, 64, True), 128, 64), (integers(3, 32, True), 128, 32), (integers(4, "channel", True), 96, 32),
    (integers(8, "channel", True), 96, 0), (integers(4, "channel", True), 512, 256),
    (integers(4, 32, False), 128, "is quantized asymmetrically; XNNPACK's integers have no zero points"),
    (integers(8, 32, True), 128, "has 8 bits in groups; XNNPACK's 8-bit integers have a scale for each row"),
    (integers(4, "channel", True), 40, "has 40 columns, of which 32 are no part"),
])  # fmt: skip
def test_layouts(scheme: Any, columns: int, expected: int | str) -> None:
    found = executorch_layouts.group_of(scheme, columns)
    assert (found if isinstance(found, int) else found[0]) == expected


def test_floats_are_refused() -> None:
    found = executorch_layouts.group_of(PRESETS["fp8"], 128)
    assert not isinstance(found, int)
    assert found[1] == "quantize with `bits: 4` or `bits: 8`"


@pytest.mark.parametrize("name", executorch_layouts.TYPES)
def test_the_decoder_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    """With its static cache: at once, again after another text, and token by token past the sliding window."""
    folder = tiny.save(tmp_path, name, num_hidden_layers=2)
    model = load(folder, "cpu", torch.float32).model
    own_attention(model)
    decoder, reference = StaticDecoder(model, 32).eval(), Reference(folder)
    ids = tiny.tokens(2, 20)
    with torch.no_grad():
        for row in (ids[:1], ids[1:], ids[:1]):
            found = decoder(row, torch.tensor([0])).numpy()
            np.testing.assert_allclose(found, reference.prefill(row.numpy()), atol=1e-4)
        steps = [decoder(ids[1:, place : place + 1], torch.tensor([place])) for place in range(20)]
    np.testing.assert_allclose(torch.cat(steps, 1).numpy(), reference.prefill(ids[1:].numpy()), atol=1e-4)


@pytest.mark.nightly  # an export takes a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of ExecuTorch
@NEEDS
@pytest.mark.parametrize("embedding", ["dense", "int8", "int4"])
def test_a_program_computes_what_the_checkpoint_computes(embedding: str, checkpoint: Path, tmp_path: Path) -> None:
    """Within the rounding of inputs to 8 bits, with tables as they are stored; token by token as at once."""
    bits = table_layouts.BITS[embedding]
    folder, result = built(tmp_path, checkpoint, embedding=embedding)
    engine = json.loads((folder / "engine.json").read_text())
    written = (folder / "model.pte").read_bytes()
    assert result.metrics == {"bytes": len(written)}
    if bits:  # the embedding and the head, whose values XNNPACK has in the same order, are tied
        table = Table(
            rounded_table(load(checkpoint, "cpu", torch.float32).model.get_input_embeddings().weight, bits), 1
        )
        assert written.count(table.get_buffer("rows").numpy().tobytes()) == 1
    assert {key: engine[key] for key in ("format", "backend", "embedding", "context", "vocabulary", "max_batch")} == {
        "format": "executorch", "backend": "xnnpack", "embedding": embedding, "context": 48, "vocabulary": 96,
        "max_batch": 1,
    }  # fmt: skip
    program, model = runtimes.open(folder, "cpu", 1), load(checkpoint, "cpu", torch.float32, exact=True).model
    ids = tiny.tokens(2, 24).numpy()
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if bits:
                module.weight.copy_(rounded_table(module.weight, bits).dequantize(torch.float32))
        theirs = model(torch.from_numpy(ids[:1])).logits.numpy()
    ours = program.prefill(ids[:1])
    assert np.abs(ours - theirs).mean() < 0.03 * np.abs(theirs).mean()
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.9
    program.prefill(ids[1:])
    steps = [program.prefill(ids[:1, :1]), *(program.decode(ids[:1, place : place + 1]) for place in range(1, 24))]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), ours, atol=1e-4)
    program.close()


@pytest.mark.parametrize(("bits", "groups"), [(4, 1), (8, 1)])
def test_a_table_that_multiplies_is_gptqs(bits: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 32, generator=generator)
    x = torch.randn(60, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    h = 2 / len(x) * x.T @ x
    done: list[tuple[int, int]] = []
    found = rounded_table(weight, bits, tables.calibration(h, lambda *rows: done.append(rows)))
    assert done == [(20, 20)]
    assert tuple(found.scale.shape) == (20, groups)
    assert found.scale.dtype == (torch.bfloat16 if bits == 4 else torch.float32)
    middle = [[2 ** (bits - 1)] * groups] * 20
    grid = Points(found.scale.double().tolist(), middle, 2**bits, 32 // groups)
    order = sorted(range(32), key=lambda j: -float(h[j, j]))
    assert found.codes.tolist() == gptq(weight, dampened(h, tables.DAMPENING), grid, order)


def test_data_that_have_no_effect_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    why = "`data` has no effect: it says how to round the table of integers that multiplies, and "
    dense = ("R418", f"{why}`embedding: dense` leaves the tables of this model dense", "leave it out")
    assert complaints(checkpoint, data="calibration", embedding="dense") == [dense]
    for embedding in ("int4", "int8"):
        assert complaints(checkpoint, data="calibration", embedding=embedding) == []


def test_the_forecast_has_the_calibration(checkpoint: Path) -> None:
    data = {"data": DataFacts("calibration", 8, 24, 1536, "0" * 64)}
    given = Inputs(facts(checkpoint, "demo"), {}, data, machine_facts("cpu"))
    plain, calibrated = (
        Host(checkpoint.parent / "check", KIND, checkpoint, ids).params for ids in (None, tiny.tokens(8, 24))
    )
    assert find(KIND).estimate(calibrated, given).seconds > find(KIND).estimate(plain, given).seconds
    assert find(KIND).estimate(calibrated, given).memory > find(KIND).estimate(plain, given).memory
    assert "tables" not in (find(KIND).outcome(plain, given).engine or {})
    engine = find(KIND).outcome(calibrated, given).engine or {}
    assert engine["tables"] == {"rounding": "gptq", "calibration": [8, 24]}


@pytest.mark.nightly  # an export takes a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@NEEDS
def test_a_calibrated_table_is_in_the_program_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executorch_sharing, "_LARGE", 1 << 10)
    source = quantized(tmp_path, "llama_tied")
    host = Host(tmp_path / "built", KIND, source, tiny.tokens(8, 24), context=48, embedding="int4")
    result = find(KIND).run(host)
    written = (host.out_dir / "model.pte").read_bytes()
    weight = load(source, "cpu", torch.float32).model.get_input_embeddings().weight.detach()
    inputs = StreamInputs(source, facts(source, "demo"), ids=tiny.tokens(8, 24))
    moment = head_inputs.second_moment(inputs, StreamRun(tmp_path / "again", tmp_path / "again.json", SILENT))
    calibrated = tables.calibration(moment, lambda done, rows: None)
    rows = [Table(rounded_table(weight, 4, each), 1).get_buffer("rows") for each in (calibrated, None)]
    assert [written.count(each.numpy().tobytes()) for each in rows] == [1, 0]
    told = {"rounding": "gptq", "calibration": [8, 24]}
    assert json.loads((host.out_dir / "engine.json").read_text())["tables"] == result.details["tables"] == told
    text = (
        "the embedding and the head are\nint4, where they multiply rounded by GPTQ from the head's inputs in 8 windows"
    )
    assert text in (host.out_dir / "README.md").read_text()


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@NEEDS
def test_scales_that_bfloat16_does_not_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        built(tmp_path / "built", quantized(tmp_path, dtype=torch.float32))
    assert caught.value.help == "quantize a model of bfloat16: its scales are stored in its type"

"""What the worker hands to a step: real tokens, seeds, threads, events."""

from __future__ import annotations

import random
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from runner.contracts.lineage import AppliedStep, Lineage
from runner.contracts.step_kind import Artifact, DataFacts
from runner.data.windows import windows
from runner.errors import Interrupted, RecipeError
from runner.execute import messages
from runner.execute.messages import DataRef, InputRef, Request
from runner.execute.worker.context import StepContext, seed_everything
from runner.job.entries import Stage
from runner.progress.events import Event
from runner.recipe.types import DataSpec

DEMO = Path(__file__).parents[3] / "runner" / "demo"
TEXT = DEMO / "data" / "stdlib" / "calibration.jsonl"
LINEAGE = Lineage("demo:tiny-llama", (AppliedStep("sparse", "prune.wanda", {"sparsity": 0.5}),))
SPEC = DataSpec("calibration", str(TEXT), None, 32, samples=5)


def request(spec: DataSpec = SPEC) -> Request:
    return Request(
        index=3, id="gptq", kind="quantize.gptq", kind_version=1, key="ab", params={"bits": 4},
        step=AppliedStep("gptq", "quantize.gptq", {"bits": 4}), seed=2**40 + 7,
        key_inputs={"environment": {"torch": "x"}}, device="cpu", threads=1, store="/store", recipe="demo",
        recipe_text="name: demo\n", inputs={"checkpoint": InputRef("/model", "checkpoint", "cd", LINEAGE)},
        data={"data": DataRef(asdict(spec), (str(TEXT),), "ef", 99)}, produces="checkpoint",
        tokenizer=str(DEMO / "models" / "tiny-llama"), command="runner apply a.yaml",
    )  # fmt: skip


def context(spec: DataSpec = SPEC) -> tuple[StepContext, list[Event], threading.Event]:
    sent: list[Event] = []
    stop = threading.Event()
    return StepContext(request(spec), Stage("ab", Path("/stage")), sent.append, stop), sent, stop


def test_data_are_the_windows_of_the_recipe() -> None:
    ctx, _, _ = context()
    ids = ctx.data("data")
    assert (ids.shape, ids.dtype) == ((5, 32), torch.int64)
    assert np.array_equal(ids.numpy(), windows(SPEC, [TEXT], DEMO / "models" / "tiny-llama"))
    assert ctx.data_facts("data") == DataFacts("calibration", 5, 32, 99, "ef")


def test_data_that_are_too_short_are_refused() -> None:
    ctx, _, _ = context(replace(SPEC, samples=10**6))
    with pytest.raises(RecipeError) as caught:
        ctx.data("data")
    (complaint,) = caught.value.diagnostics
    assert complaint.code == "R464"
    assert complaint.message.startswith(
        "data `calibration` asks for 1000000 windows of 32 tokens = 32,000,000; the text"
    )


def test_the_context_has_what_was_asked() -> None:
    ctx, sent, stop = context()
    assert ctx.inputs == {"checkpoint": Artifact(Path("/model"), "checkpoint", "cd", LINEAGE)}
    assert (ctx.out_dir, ctx.scratch_dir) == (Path("/stage/out"), Path("/stage/scratch"))
    assert ctx.cache_dir == Path(request().store) / ".cache"
    ctx.emit("layer", layer=1, layers=2, seconds=0.5, error=None)
    ctx.emit("metric", name="loss", value=1.0)
    assert [(e["event"], e["step"]) for e in sent] == [("layer", 3), ("metric", 3)]
    assert sent[0]["memory"] > 2**20
    ctx.safe_point()
    stop.set()
    with pytest.raises(Interrupted, match="stopped at a safe point"):
        ctx.safe_point()


def test_seeds_reach_every_generator() -> None:
    threads = torch.get_num_threads()
    drawn = []
    for _ in range(2):
        seed_everything(request())
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)


def test_a_request_survives_the_wire() -> None:
    assert messages.decode(messages.encode_run(request())) == request()
    assert messages.decode(messages.encode_stop()) is None

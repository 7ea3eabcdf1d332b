"""Make a student from a checkpoint: measure the influence of its decoder layers, and drop some of them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from runner.model.architecture import inspect
from runner.model.architecture.inspect import facts as read_facts
from runner.model.checkpoint import derived
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.safetensors_writer import sync_folder, write_all, written
from runner.model.layerwise.forward_modes import forward
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.stream_run import StreamRun
from runner.model.layerwise.streamed_model import StreamedModel
from runner.system import heap
from runner.training import layer_selection

MEASURED_TOKENS = 1 << 16  # enough for a ranking: block influence hardly depends on the text (ShortGPT, section 4)


def cut(source: Path, keep: Sequence[int], out: Path) -> None:
    """Write to `out` the checkpoint in `source` with only its decoder layers `keep`, renumbered, in one file.

    Bytes are copied, nothing is loaded. `out` is renamed into place when complete; nothing is done where it exists.
    """
    from transformers import AutoConfig

    if out.exists():
        return
    unfinished = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    facts = read_facts(source, str(source))
    names = layer_selection.renamed(facts, keep)
    full = AutoConfig.from_pretrained(source, trust_remote_code=inspect.needs_own_code(source)).to_dict()
    config = layer_selection.config(facts.config, keep, full)
    selection = derived.Selection(names, "its layer is left out")
    with CheckpointReader(source, facts.tensors) as reader:
        derived.write(reader, derived.Derived(selection, config), unfinished)
    for path in sorted(unfinished.rglob("*")):
        _sync(path)
    sync_folder(unfinished)
    os.replace(unfinished, out)
    sync_folder(out.parent)


def influence(folder: Path, ids: torch.Tensor, device: str, run: StreamRun) -> list[float]:
    """Measure the block influence of every decoder layer: 1 − E[cos(x_in, x_out)] over positions.

    ShortGPT (Men 2024, arXiv:2403.03853, eq. 1). It is 0 for a layer that changes only the norm of its input. Measured
    on the first MEASURED_TOKENS tokens of `ids` [windows, length], a layer in memory at a time. The result is written
    to `run.progress` and read from there the next time; an interrupted measurement starts again.
    """
    answer = run.progress
    if answer.exists():
        found: list[float] = json.loads(answer.read_text(encoding="utf-8"))
        return found
    run.scratch.mkdir(parents=True, exist_ok=True)
    streamed = StreamedModel(folder, device)
    flow = HiddenStates(streamed, ids[: max(1, MEASURED_TOKENS // ids.shape[1])], run.scratch)
    influences: list[float] = []
    with torch.no_grad():
        flow.begin(0, [])
        for index in range(len(streamed)):
            run.hooks.safe_point()
            started = time.perf_counter()
            influences.append(1 - _mean_cosine(flow, index, streamed.load(index)))
            streamed.free(index)
            flow.drop(index)
            heap.trim()
            seconds = time.perf_counter() - started
            layers = run.before + len(streamed) + run.after
            run.hooks.emit("layer", layer=run.before + index + 1, layers=layers, seconds=seconds, error=None)
    flow.drop(len(streamed))
    streamed.reader.close()
    with written(answer) as file:
        write_all(file, json.dumps(influences).encode())
    return influences


def _mean_cosine(flow: HiddenStates, index: int, layer: torch.nn.Module) -> float:
    """Return the mean cosine of a layer's inputs and outputs; write the outputs for the next layer."""
    lane = flow.lane(0, index, layer)
    total = 0.0
    for span in flow.spans:
        after = forward(lane, span)
        lane.write(span[0], after)
        before = lane.read(*span)
        total += float(cosine_similarity(before.float(), after.float(), dim=-1).double().sum())
    return total / (flow.windows * flow.length)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

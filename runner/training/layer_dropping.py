"""Make a student from a checkpoint: measure the influence of its decoder layers, and drop some of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.utils.hooks import RemovableHandle

from runner.contracts.account import Account
from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import inspect
from runner.model.architecture.inspect import facts as read_facts
from runner.model.checkpoint import derived
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.safetensors_writer import sync_folder
from runner.model.layerwise import progress_file, same_layers
from runner.model.layerwise.final_hidden import final_hidden, position_chunks
from runner.model.layerwise.forward_modes import forward
from runner.model.layerwise.hidden_states import HiddenStates
from runner.model.layerwise.layer_probes import hidden_states
from runner.model.layerwise.stream_run import StreamRun
from runner.model.layerwise.streamed_model import StreamedModel
from runner.system import heap
from runner.training import layer_selection

MEASURED_TOKENS = 1 << 16  # enough for a ranking: block influence hardly depends on the text (ShortGPT, section 4)
TRIED_TOKENS = 1 << 14  # of each model without a layer, of which there are as many as layers


def cut(source: Path, keep: Sequence[int], out: Path) -> None:
    """Write to `out` the checkpoint in `source` with only its decoder layers `keep`, renumbered, in one file.

    Bytes are copied, nothing is loaded. `out` is renamed into place when complete; nothing is done where it exists.
    """
    if out.exists():
        return
    unfinished = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    write(source, read_facts(source, str(source)), keep, unfinished)
    for path in sorted(unfinished.rglob("*")):
        _sync(path)
    sync_folder(unfinished)
    os.replace(unfinished, out)
    sync_folder(out.parent)


def write(
    source: Path,
    facts: CheckpointFacts,
    keep: Sequence[int],
    out: Path,
    max_shard_bytes: int | None = None,
    card: Callable[[Path], str] | None = None,
) -> Account:
    """Write to `out` the checkpoint in `source`, which `facts` describes, with only its decoder layers `keep`.

    Bytes are copied, nothing is loaded. Raises RecipeError where no config.json gives a model of these layers.
    """
    config = cut_config(source, facts, keep)
    selection = derived.Selection(layer_selection.renamed(facts, keep), "its layer is left out", max_shard_bytes)
    with CheckpointReader(source, facts.tensors) as reader:
        return derived.write(reader, derived.Derived(selection, config, card=card), out)


def cut_config(source: Path, facts: CheckpointFacts, keep: Sequence[int]) -> dict[str, Any]:
    """Return config.json of the layers `keep`; RecipeError (R806) where transformers would make other layers of it."""
    from transformers import AutoConfig

    full = AutoConfig.from_pretrained(source, trust_remote_code=inspect.needs_own_code(source)).to_dict()
    config = layer_selection.config(facts.config, keep, full)
    other = same_layers.difference(source, config, keep)
    if other is not None:
        message = f"layers of `{facts.source}` (`{facts.config.model_type}`) cannot be left out: {other}"
        raise RecipeError([Diagnostic("R806", message, layer_selection.OTHERS)])
    return config


def influence(folder: Path, ids: torch.Tensor, device: str, run: StreamRun) -> list[float]:
    """Measure the block influence of every decoder layer: 1 − E[cos(x_in, x_out)] over positions.

    ShortGPT (Men 2024, arXiv:2403.03853, eq. 1). It is 0 for a layer that changes only the norm of its input. Measured
    on the first MEASURED_TOKENS tokens of `ids` [windows, length], a layer in memory at a time. Finished layers of an
    interrupted measurement are not measured again.
    """
    streamed = StreamedModel(folder, device)
    done = progress_file.load(run.progress, len(streamed))
    if done.layer < len(streamed):
        cosines = _Cosines(streamed)
        flow = final_hidden(streamed, ids[: max(1, MEASURED_TOKENS // ids.shape[1])], run, cosines)
        flow.drop(len(streamed))
        done = progress_file.load(run.progress, len(streamed))
    streamed.reader.close()
    return [float(layer["influence"]) for layer in done.results]


class _Cosines:
    """Observes the cosines of the inputs and outputs of layers."""

    def __init__(self, streamed: StreamedModel) -> None:
        self.streamed, self.total, self.positions = streamed, 0.0, 0

    def attach(self, index: int) -> list[RemovableHandle]:
        self.total, self.positions = 0.0, 0

        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            before, after = inputs[0], hidden_states(output)
            self.total += float(cosine_similarity(before.float(), after.float(), dim=-1).double().sum())
            self.positions += before.shape[0] * before.shape[1]

        return [self.streamed.layers[index].register_forward_hook(hook)]

    def result(self, index: int) -> dict[str, float]:
        return {"influence": 1 - self.total / self.positions}


def losses_without(folder: Path, ids: torch.Tensor, device: str, run: StreamRun) -> list[float]:
    """Measure the mean loss of a next token without each decoder layer alone; the last value is that of the model.

    Shortened LLaMA (Kim 2024, arXiv:2402.02834), on the first TRIED_TOKENS tokens of `ids` [windows, length]. All
    models run side by side, a layer in memory at a time; up to the layer that it lacks, a model is the complete one.
    """
    streamed = StreamedModel(folder, device)
    count = len(streamed)
    done = progress_file.load(run.progress, count)
    if done.layer < count or "losses" not in done.results[-1]:
        run.scratch.mkdir(parents=True, exist_ok=True)
        flow = HiddenStates(streamed, ids[: max(1, TRIED_TOKENS // ids.shape[1])], run.scratch, lanes=count + 1)
        with torch.no_grad():
            if not flow.begin(done.layer, done.hidden):
                done = progress_file.Progress(count)
                flow.begin(0, [])
            for index in range(done.layer, count):
                run.hooks.safe_point()
                started = time.perf_counter()
                _run_without(flow, index, streamed.load(index), count)
                streamed.free(index)
                done.layer, done.hidden = index + 1, flow.finished(index + 1)
                done.results.append({})
                done.save(run.progress)
                flow.drop(index)
                heap.trim()
                seconds = time.perf_counter() - started
                layers = run.before + count + run.after
                run.hooks.emit("layer", layer=run.before + index + 1, layers=layers, seconds=seconds, error=None)
            done.results[-1] = {"losses": _losses(streamed, flow, count)}
        done.save(run.progress)
        flow.drop(count)
    streamed.reader.close()
    return [float(loss) for loss in done.results[-1]["losses"]]


def _run_without(flow: HiddenStates, index: int, layer: torch.nn.Module, count: int) -> None:
    """Run a layer in the complete model, lane `count`, and in those that lack an earlier one; lane `index` skips it."""
    lanes = [flow.lane(lane, index, layer) for lane in range(count + 1)]
    for span in flow.spans:
        complete = forward(lanes[count], span)
        for lane in lanes[:index]:
            lane.write(span[0], forward(lane, span))
        lanes[index].write(span[0], lanes[count].read(*span))
        for lane in lanes[index + 1 :]:
            lane.write(span[0], complete)


def _losses(streamed: StreamedModel, flow: HiddenStates, count: int) -> list[float]:
    """Return the mean loss of the next token in each lane, from its final hidden states."""
    streamed.load_rest(embedding=False)
    found = []
    for lane in range(count + 1):
        total = 0.0
        for start, stop in flow.spans:
            hidden, window = flow.file(lane, count).read(start, stop), flow.ids[start:stop].to(streamed.device)
            for keep in position_chunks(flow.length, stop - start, streamed.vocabulary_size):
                logits = streamed.logits(hidden, keep).flatten(0, 1)
                total += float(cross_entropy(logits, window[:, keep + 1].flatten(), reduction="sum").double())
        found.append(total / (flow.windows * (flow.length - 1)))
    streamed.free_rest()
    return found


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

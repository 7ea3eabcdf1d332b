"""What reads and what writes the residual stream of a decoder layer, found on the layer itself by running it.

A reader is a group of linears behind a norm of the stream. With the outputs of all such norms held fixed, the layer is
x + Σ writers: a linear is a writer if adding a vector to its output adds a multiple of that vector to the layer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.model.layerwise.channel_scalings import connections, drawn, is_norm
from runner.model.layerwise.layer_trials import Trial, outputs_changed
from runner.model.layerwise.linear import widths
from runner.model.layerwise.streamed_model import StreamedModel

_PARALLEL = 1e-3  # how far the change of the output may be from a multiple of what was added


@dataclass(frozen=True)
class Stream:
    """The residual stream of a layer. Names are inside the layer.

    readers   norm → the linears that read its output
    writers   the linears whose outputs are added to the stream, perhaps times a number
    others    norms as wide as the stream that no linear reads: what blocks give goes through them
    """

    readers: Mapping[str, tuple[str, ...]]
    writers: tuple[str, ...]
    others: tuple[str, ...]


def find_stream(trial: Trial, seed: int = 0) -> Stream:
    """Return what reads and writes the residual stream of the layer of `trial`, which may have few tokens."""
    generator = torch.Generator().manual_seed(seed)
    trial = drawn(trial, generator)
    width = trial.hidden.shape[-1]
    found = connections(trial)
    of_stream = _on_stream(trial, found.norms, found.order, generator)
    readers = {source: names for names, source in found.groups if source in of_stream}
    others = [
        name for name in dict.fromkeys(found.norms)
        if name not in readers and trial.layer.get_submodule(name).get_parameter("weight").numel() == width
    ]  # fmt: skip
    inside = {name for names in readers.values() for name in names}
    candidates = [n for n in found.order if n not in inside and widths(trial.layer.get_submodule(n))[0] == width]
    added = torch.randn(width, generator=generator).to(trial.hidden)
    with _recorded(trial, list(readers), hold=True):
        plain = trial.run()[0]
        writers = [name for name in candidates if _adds(trial, name, added, plain)]
    return Stream(readers, tuple(writers), tuple(others))


def _on_stream(trial: Trial, norms: Sequence[str], linears: Sequence[str], generator: torch.Generator) -> set[str]:
    """Return the norms whose input has the layer's own as a part: with the outputs of all linears held fixed it changes

    with the layer's. The input of others, as of low-rank queries, is what a linear made.
    """
    with _recorded(trial, linears, hold=True):
        with _recorded(trial, norms) as plain:
            trial.run()
        with _recorded(trial, norms) as moved:
            drawn(trial, generator).run()
    return {name for name in plain if not torch.equal(plain[name], moved[name])}


def _adds(trial: Trial, name: str, added: torch.Tensor, plain: torch.Tensor) -> bool:
    with outputs_changed(trial.layer.get_submodule(name), lambda y: y + added):
        change = (trial.run()[0] - plain).reshape(-1, plain.shape[-1]).double()
    direction = added.double() / added.double().norm()
    along = change @ direction
    rest = (change - along[:, None] * direction).norm()
    return bool(change.norm() > 0 and rest < _PARALLEL * change.norm())


@contextmanager
def _recorded(trial: Trial, names: Sequence[str], *, hold: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Yield what modules give first, by name; with `hold` they go on giving that, whatever their inputs become."""
    first: dict[str, torch.Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            given = first.setdefault(name, output)
            return given if hold else None

        return hook

    handles = [trial.layer.get_submodule(name).register_forward_hook(record(name)) for name in names]
    try:
        yield first
    finally:
        for handle in handles:
            handle.remove()


def keeps_mean(streamed: StreamedModel) -> bool:
    """Whether a rotation must keep the mean of channels: norms of the first layer subtract it, as LayerNorm does."""
    layer = streamed.load(0, torch.float32)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, streamed.hidden_size, generator=generator).to(streamed.device)
    found = [
        subtracts_mean(module, inputs)
        for module in layer.modules()
        if is_norm(module) and module.get_parameter("weight").numel() == streamed.hidden_size
    ]
    streamed.free(0)
    return any(found)


def subtracts_mean(norm: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether a norm gives the same when a number is added to all channels of `inputs` [tokens, hidden]: LayerNorm."""
    plain, moved = norm(inputs), norm(inputs + inputs.std() + 1)
    return bool((plain - moved).norm() < 1e-2 * plain.norm())

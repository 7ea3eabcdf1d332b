"""What each decoder layer is called with besides its hidden states, for every batch.

Most models call a layer with the same arguments whatever the tokens are (rotary tables, a mask); those are stored once
for each size of batch. Where a batch's arguments differ (inputs of a layer's own that come from the tokens, masks and
positions of images), they wait on disk until the last layer that wants them has run: one file for a batch, in which
what several layers share is written once. A dictionary or list that is empty at first is state that layers fill for
later ones (shared keys and values): each batch of each lane has its own, and it is part of what an interrupted step
resumes from.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.model.layerwise.forward_modes import Span
from runner.model.layerwise.layer_probes import Call

SCOUT: Span = (-1, -1)  # the few tokens that find out which linears see one input


@dataclass(frozen=True)
class _State:
    """Stands in recorded arguments for the state of that number."""

    number: int


class LayerArguments:
    """Records the calls of all layers for each batch, `record`, and gives them back, `call`.

    `folder` holds what differs between batches; `lanes` is the number of versions of the model.
    """

    def __init__(self, folder: Path, lanes: int) -> None:
        self._folder, self._lanes = folder, lanes
        self._shared: dict[int, list[Call]] = {}  # by the number of windows
        self._own: dict[Span, list[bool]] = {}  # whether a layer's arguments are stored for this batch alone
        self._scout: list[Call] = []
        self._states: dict[tuple[int, Span], list[Any]] = {}  # by lane

    def record(self, span: Span, calls: list[Call]) -> None:
        """Note what every layer is called with for the windows of `span`; SCOUT for the scout's tokens."""
        calls, states = _separate_states(calls)
        for lane in range(self._lanes):
            self._states[lane, span] = copy.deepcopy(states)
        if span == SCOUT:
            self._scout = calls
            return
        shared = self._shared.setdefault(span[1] - span[0], calls)
        if shared is calls:
            return
        same = _comparison()
        own = [not same(one, other) for one, other in zip(calls, shared, strict=True)]
        if any(own):
            self._own[span] = own
            torch.save([call if own[layer] else None for layer, call in enumerate(calls)], self._file(span))

    def call(self, lane: int, layer: int, span: Span) -> Call:
        """The positional and keyword arguments of a layer for a batch."""
        if span == SCOUT:
            call = self._scout[layer]
        elif self._own.get(span, [False] * (layer + 1))[layer]:
            # The file was written by this process, or by the interrupted one before it.
            call = torch.load(self._file(span), weights_only=False, mmap=True)[layer]
        else:
            call = self._shared[span[1] - span[0]][layer]
        states = self._states[lane, span]
        return _map(call, lambda value: states[value.number] if isinstance(value, _State) else value)

    def has_state(self) -> bool:
        """Whether layers hand one another more than hidden states."""
        return any(self._states.values())

    def states(self, spans: Sequence[Span]) -> dict[tuple[int, Span], list[Any]]:
        """The states of some batches as they are now, by lane and batch."""
        return {(lane, span): found for (lane, span), found in self._states.items() if span in spans}

    def save_states(self, path: Path, others: Sequence[Mapping[tuple[int, Span], list[Any]]] = ()) -> str:
        """Write the states of every batch as they are now; the digest of the file. `others` are of other processes."""
        states = dict(self._states)
        for more in others:
            states |= more
        torch.save(states, path)
        return _digest(path)

    def load_states(self, path: Path, digest: str) -> bool:
        """Take the states from a file; False where it is not what was written under that digest."""
        if not path.is_file() or _digest(path) != digest:
            return False
        self._states = torch.load(path, weights_only=False)
        return True

    def drop(self, layer: int) -> None:
        """Forget the arguments of a layer that has run."""
        for span, own in self._own.items():
            if layer < len(own) and own[layer] and not any(own[layer + 1 :]):
                self._file(span).unlink(missing_ok=True)

    def _file(self, span: Span) -> Path:
        return self._folder / f"arguments-{span[0]}"


def hands_state(calls: list[Call]) -> bool:
    """Whether layers that are called so hand one another more than hidden states: keys and values."""
    return bool(_separate_states(calls)[1])


def _separate_states(calls: list[Call]) -> tuple[list[Call], list[Any]]:
    """The calls with every empty dictionary or list replaced by the number of a state, and those states."""
    states: list[Any] = []
    numbers: dict[int, int] = {}

    def separated(value: Any) -> Any:
        if not (isinstance(value, MutableMapping | MutableSequence) and not value):
            return value
        if id(value) not in numbers:
            numbers[id(value)] = len(states)
            states.append(value)
        return _State(numbers[id(value)])

    return [_map(call, separated) for call in calls], states


def _map(call: Call, change: Callable[[Any], Any]) -> Call:
    args, kwargs = call
    return tuple(change(value) for value in args), {key: change(value) for key, value in kwargs.items()}


def _comparison() -> Callable[[Any, Any], bool]:
    """A function that compares arguments; layers share most of theirs, so each pair of tensors is compared once."""
    seen: dict[tuple[int, int], bool] = {}

    def tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
        pair = id(one), id(other)
        if pair not in seen:
            seen[pair] = one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
        return seen[pair]

    def same(one: Any, other: Any) -> bool:
        if one is other:
            return True
        if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
            return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and tensors(one, other)
        if type(one) is not type(other):
            return False
        if isinstance(one, Mapping):
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        if isinstance(one, tuple | list):
            return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
        return bool(one == other)

    return same


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

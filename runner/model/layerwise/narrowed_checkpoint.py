"""Writing a narrower checkpoint: some rows and columns of every tensor, a decoder layer in memory at a time.

What was written is then compared with the original, from which the same units were taken away by zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.contracts.account import Account
from runner.contracts.facts import CheckpointFacts
from runner.errors import StepFailed
from runner.model.architecture import units
from runner.model.architecture.units import FEED_FORWARD, HEADS, HIDDEN, Layout
from runner.model.checkpoint import derived
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.writer import CheckpointWriter
from runner.model.layerwise.channel_scalings import is_norm
from runner.model.layerwise.layer_probes import Call, hidden_states
from runner.model.layerwise.layer_trials import as_float32
from runner.model.layerwise.relative_change import relative_change
from runner.model.layerwise.streamed_model import StreamedModel
from runner.model.layerwise.unit_scores import Kept, columns, index_of, masking
from runner.system import heap

TOLERANCE = 1e-3  # of what a layer adds to its input, in float32; a wrong row moves it by tenths
TOKENS = 16  # of the comparison


@dataclass(frozen=True)
class Narrowing:
    """A checkpoint that becomes narrower.

    facts   of the checkpoint
    after   the widths that it gets
    kept    the units that stay in each layer; HIDDEN is the same in all
    """

    facts: CheckpointFacts
    after: units.Widths
    kept: Sequence[Kept]

    def hidden(self) -> Kept:
        """The channels of hidden states that stay, where these are cut."""
        return {axis: stay for axis, stay in self.kept[0].items() if axis == HIDDEN}

    def write(
        self,
        reader: CheckpointReader,
        parts: CheckpointWriter,
        out: Path,
        max_shard_bytes: int,
        card: Callable[[Path], str],
    ) -> Account:
        """Write the narrower checkpoint to `out`; return the account of all tensors. Repeatable."""
        axes = {axis for kept in self.kept for axis in kept}
        layouts = units.layouts(self.facts, axes)
        inside: set[str] = set()
        for index, kept in enumerate(self.kept):
            names = self.facts.layer_tensors(index)
            inside.update(names)
            part = f"layer-{index:05d}"
            parts.add(part, {n: cut(reader.read(n), layouts[n], kept) for n in names if n in layouts})
            parts.copy(f"{part}-kept", reader, [name for name in names if name not in layouts])
        outside = sorted(set(self.facts.tensors) - inside)
        for number, name in enumerate(name for name in outside if name in layouts):
            parts.add(f"outside-{number:05d}", {name: cut(reader.read(name), layouts[name], self.hidden())})
        parts.copy("rest", reader, [name for name in outside if name not in layouts])
        tensors = derived.Parts(parts, max_shard_bytes, {name: [name] for name in layouts})
        config = units.config(self.facts.config, units.widths(self.facts), self.after)
        return derived.write(reader, derived.Derived(tensors, config, card=card), out)


def cut(tensor: torch.Tensor, layout: Layout, kept: Kept) -> torch.Tensor:
    """Return the rows and columns of a tensor that belong to units that stay."""
    for dimension, blocks in enumerate(layout):
        if blocks:
            tensor = tensor.index_select(dimension, index_of(kept, blocks))
    return tensor


def compare(narrowing: Narrowing, before: StreamedModel, after: StreamedModel) -> float:
    """Return how far the narrower model is from the original with zeros in place of what was cut, the largest share.

    Each layer is given the same hidden states, in float32, and its change of them compared; so are embeddings and
    logits. In the original, channels of hidden states that were cut are zero, and norms see those that stay. Raises
    StepFailed where a share is above TOLERANCE.
    """
    pair = _Pair(narrowing, before, after)
    ids = torch.arange(2 * TOKENS).view(2, TOKENS).remainder(before.vocabulary_size).to(before.device)
    with torch.no_grad(), pair.same_norms():
        hidden, ours, found = _around(after, ids, lambda narrow: narrow)
        for name in pair.norms():
            after.load_module(name)
        wide, theirs, expected = _around(before, ids, lambda _: pair.spread(hidden))
        after.free_rest()
        shares = [
            relative_change(hidden, wide[..., pair.stay], wide[..., pair.stay]),
            relative_change(found, expected, expected),
        ]
        waves = torch.sin(torch.arange(hidden.numel(), device=hidden.device)).view_as(hidden)
        inputs = hidden + 0.1 * hidden.std() * waves.to(hidden.dtype)
        shares += [pair.layer(index, inputs, theirs[index], ours[index]) for index in range(len(before))]
    worst = max(shares)
    if not worst <= TOLERANCE:
        raise StepFailed(
            "the narrower model does not compute what the original does without what was cut: outputs differ by a "
            f"share of {worst:.2g}",
            "this is a fault of the step's kind: report it; nothing of this step was kept",
        )
    return worst


def _around(
    model: StreamedModel, ids: torch.Tensor, final: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, list[Call], torch.Tensor]:
    """Return embedded tokens, the arguments of layers, and the last logits of `final` of the former, in float32."""
    model.load_rest(dtype=torch.float32)
    hidden, calls = model.calls(ids)
    logits = model.logits(final(hidden), torch.tensor([TOKENS - 1]))
    model.free_rest()
    heap.trim()
    return hidden, calls, logits


class _Pair:
    """A model and its narrower one."""

    def __init__(self, narrowing: Narrowing, before: StreamedModel, after: StreamedModel) -> None:
        self.narrowing, self.before, self.after = narrowing, before, after
        stay = narrowing.hidden().get(HIDDEN, range(before.hidden_size))
        self.stay = torch.tensor(list(stay), device=before.device)

    def layer(self, index: int, inputs: torch.Tensor, theirs: Call, ours: Call) -> float:
        """Return how far a layer is from that of the original, of narrow hidden states [batch, length, channels]."""
        wide = self.before.load(index, torch.float32)
        narrow = self.after.load(index, torch.float32)
        args, kwargs = as_float32(theirs, self.before.device)
        with self._masked(index):
            expected = hidden_states(wide(self.spread(inputs), *args, **kwargs))[..., self.stay]
        args, kwargs = as_float32(ours, self.after.device)
        found = hidden_states(narrow(inputs, *args, **kwargs))
        self.before.free(index)
        self.after.free(index)
        return relative_change(found, expected, expected - inputs)

    def spread(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states of the narrower model as the original has them, with zeros in the channels cut."""
        wide = hidden.new_zeros((*hidden.shape[:-1], self.before.hidden_size))
        wide[..., self.stay] = hidden
        return wide

    def norms(self) -> list[str]:
        """Return the norms of hidden states outside the decoder layers that became narrower."""
        inside = f"{self.before.layers_name}."
        modules = self.before.model.named_modules()
        return [name for name, module in modules
                if is_norm(module) and not name.startswith(inside) and self._is_narrower(name)]  # fmt: skip

    def _is_narrower(self, norm: str) -> bool:
        wide, narrow = (each.model.get_submodule(norm).get_parameter("weight") for each in (self.before, self.after))
        return bool(wide.numel() != narrow.numel())

    @contextmanager
    def same_norms(self) -> Iterator[None]:
        """Let norms of hidden states in the original give what those of the narrower model do."""

        def narrow(norm: nn.Module) -> Any:
            return lambda module, inputs, output: self.spread(norm(inputs[0][..., self.stay]))

        handles = []
        for name, module in self.before.model.named_modules():
            if is_norm(module) and self._is_narrower(name):
                handles.append(module.register_forward_hook(narrow(self.after.model.get_submodule(name))))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _masked(self, index: int) -> Iterator[None]:
        """Let a layer of the original do without the heads and neurons that were cut."""
        facts, kept = self.narrowing.facts, self.narrowing.kept[index]
        modules, size = self.before.linear_names(), units.widths(facts).head_size
        handles = []
        for role, axis, channels in (("o", HEADS, size), ("down", FEED_FORWARD, 1)):
            if axis in kept:
                site = next(each for each in facts.sites if each.layer == index and each.role == role)
                module = self.before.model.get_submodule(modules[site.name])
                handles.append(module.register_forward_pre_hook(masking(columns(kept[axis], channels))))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

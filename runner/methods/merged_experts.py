"""The weights of kept experts to which dropped ones are added, tensor by tensor. Experts of a mixture have no order.

A tensor may hold one matrix of one expert, or one or more matrices of all of them, as [columns, rows] where it is
transposed; what is written has the layout of what is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch

from runner.contracts.mixtures import ExpertMatrix, Mixture
from runner.contracts.sites import Site
from runner.errors import StepFailed
from runner.methods import expert_choice, expert_merging
from runner.model.checkpoint.placed_part import site_weight
from runner.model.checkpoint.reader import CheckpointReader, require_finite
from runner.model.checkpoint.writer import Pieces
from runner.model.layerwise.expert_stream import MixtureRun


def joined(run: MixtureRun, kept: Sequence[int]) -> dict[str, list[float]]:
    """Return for each expert which of those `kept` it becomes part of ("joins"), and how alike they are ("alike").

    A kept expert joins itself; alike is the cosine between outputs for the same tokens. StepFailed where an expert
    gives outputs that are not finite for them, by which all others would be alike to none.
    """
    width = run.calls[0].inputs.width
    tokens = expert_choice.compared(run.lanes[0].mixture.experts, width, run.tokens)
    outputs = run.outputs(tokens)
    for expert, own in enumerate(outputs):
        if not bool(own.isfinite().all()):
            name = run.lanes[0].mixture.name
            raise StepFailed(f"expert {expert} of `{name}` gives outputs that are not finite", "check the model")
    joins, alike = expert_merging.nearest(outputs, kept)
    return {"joins": [float(expert) for expert in joins], "alike": alike}


@dataclass(frozen=True)
class Merged:
    """The experts of one mixture that stay, and those that are added to them.

    kept      the experts that stay, in rising order
    measured  what runner.model.layerwise.expert_usage gives of the mixture, and what `joined` does
    """

    reader: CheckpointReader
    mixture: Mixture
    sites: Mapping[str, Site]
    kept: Sequence[int]
    measured: Mapping[str, Sequence[float]]
    _orders: dict[int, list[torch.Tensor | None]] = field(default_factory=dict)

    @cached_property
    def _added(self) -> dict[int, int]:
        return expert_choice.added(self.measured)

    def changes(self) -> dict[str, Pieces]:
        """Return the new values of each tensor that holds an expert to which others are added."""
        found: dict[str, Pieces] = {}
        for matrix in self.mixture.matrices:
            if matrix.tensor:
                if self._added:
                    found[matrix.tensor] = partial(self._of_all, matrix.tensor)
            else:
                for expert in self.kept:
                    if len(self.members(expert)) > 1:
                        found[self.sites[matrix.name.format(expert)].tensor] = partial(self._of_one, expert, matrix)
        return found

    def members(self, expert: int) -> list[int]:
        """Return a kept expert and those that are added to it."""
        return [expert, *(each for each, kept in self._added.items() if kept == expert)]

    def _of_one(self, expert: int, matrix: ExpertMatrix) -> Iterator[torch.Tensor]:
        site = self.sites[matrix.name.format(expert)]
        weight = self._sum(expert, matrix)
        require_finite(weight, site.tensor, "the merged experts")
        yield weight.T if site.transposed else weight

    def _of_all(self, tensor: str) -> Iterator[torch.Tensor]:
        matrices = [each for each in self.mixture.matrices if each.tensor == tensor]
        for expert in self.kept:
            blocks = [self._sum(expert, each) for each in sorted(matrices, key=lambda each: each.part)]
            weight = torch.cat(blocks)
            require_finite(weight, tensor, "the merged experts")
            yield weight.T if matrices[0].transposed else weight

    def _sum(self, expert: int, matrix: ExpertMatrix) -> torch.Tensor:
        """The matrix [rows, columns] of a kept expert with those of others added, in the type in which it is stored."""
        members = self.members(expert)
        weight = self._weight(expert, matrix)
        if len(members) == 1:
            return weight
        total = torch.zeros(weight.shape)
        shares = expert_choice.shares(expert_choice.weights(self.measured), members)
        for member, share, order in zip(members, shares, self._in_order(expert), strict=True):
            own = (weight if member == expert else self._weight(member, matrix)).float()
            if order is not None:
                own = own[:, order] if matrix.role == "expert_down" else own[order]
            total += share * own
        return total.to(weight.dtype)

    def _in_order(self, expert: int) -> list[torch.Tensor | None]:
        """For each member of a kept expert, which of its neurons takes the place of each; None for its own."""
        if expert not in self._orders:
            anchor = self._by_neuron(expert)
            others = self.members(expert)[1:]
            self._orders[expert] = [None, *(expert_merging.order(anchor, self._by_neuron(each)) for each in others)]
        return self._orders[expert]

    def _by_neuron(self, expert: int) -> list[torch.Tensor]:
        weights = {each.role: self._weight(expert, each) for each in self.mixture.matrices}
        return [weight.T if role == "expert_down" else weight for role, weight in weights.items()]

    def _weight(self, expert: int, matrix: ExpertMatrix) -> torch.Tensor:
        return site_weight(self.reader, self.sites[matrix.name.format(expert)])

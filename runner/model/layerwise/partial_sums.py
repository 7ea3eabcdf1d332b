"""Statistics over all batches, from the sums of their parts (runner.model.layerwise.process_group)."""

from __future__ import annotations

from functools import partial

import torch

from runner.model.layerwise.method import Statistics
from runner.model.layerwise.process_group import ProcessGroup, part_of
from runner.model.layerwise.statistics_collector import StatisticsCollector


class PartialSums:
    """Collects what `add` is given for each batch of this process, in order; the first process has the statistics.

    Inputs of the unchanged model count in every `every`-th batch of all alone.

    It holds two sums at once: of all parts so far, and of the part that it is at.
    """

    def __init__(
        self, want: str, columns: int, device: torch.device, batches: int, group: ProcessGroup, every: int = 1
    ) -> None:
        self._new = partial(StatisticsCollector, want, columns, device)
        self._batches, self._group, self._every = batches, group, every
        self._parts = part_of(batches - 1, batches) + 1
        owned = group.owned(batches)
        self._left = owned[::-1]
        self._part = self._new()
        self._total: StatisticsCollector | None = None

    def add(self, changed: torch.Tensor, unchanged: torch.Tensor | None = None) -> None:
        """Add the inputs of the next batch, as `StatisticsCollector.add` takes them."""
        batch = self._left.pop()
        self._part.add(changed, None if batch % self._every else unchanged)
        part = part_of(batch, self._batches)
        if not self._left or part_of(self._left[-1], self._batches) != part:
            self._finish_part(part)

    def finish(self) -> Statistics:
        """Return the statistics of all batches."""
        if self._total is None:
            raise RuntimeError("no batch of the first process reached the linear")
        return self._total.finish()

    def _finish_part(self, part: int) -> None:
        """Send the sums of a part to the first process; there, add them and those of the parts that follow."""
        group = self._group
        if not group.is_first:
            group.send(self._part.tensors(), 0)
            self._part.clear()
            return
        if self._total is None:
            self._total = self._part
            self._part = self._new() if part + 1 < self._parts else self._total
        else:
            self._total.merge(self._part)
        for later in range(part + 1, min(part + group.count, self._parts)):
            self._part.fill(partial(group.receive, source=group.owner(later)))
            self._total.merge(self._part)
        if self._part is not self._total:
            self._part.clear()

"""Collecting one group's calibration statistics, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from runner.model.layerwise import statistics
from runner.model.layerwise.method import Statistics


class StatisticsCollector:
    """Accumulates what a method wants of a linear's inputs; `add` takes [batch, length, in] of each lane."""

    def __init__(self, want: str, columns: int, device: torch.device) -> None:
        self.want = want
        self.tokens = 0
        self.compared = 0  # tokens that "cross" has seen
        self.largest = torch.zeros((), device=device)
        self.squares = statistics.new_square_sums(columns, device) if want == "input_norms" else None
        self.gram = statistics.new_gram(columns, device) if want in ("hessian", "cross") else None
        self.cross = statistics.new_gram(columns, device) if want == "cross" else None

    def add(self, changed: torch.Tensor, unchanged: torch.Tensor | None = None) -> None:
        """`changed` is the input in the model being changed, `unchanged` in the original one (for "cross")."""
        x = changed.reshape(-1, changed.shape[-1])
        self.tokens += x.shape[0]
        self.largest = torch.maximum(self.largest, statistics.largest(x))
        if self.squares is not None:
            statistics.add_square_sums(self.squares, x)
        if self.gram is not None:
            statistics.add_gram(self.gram, x)
        if self.cross is not None and unchanged is not None:
            statistics.add_cross(self.cross, unchanged.reshape(x.shape), x)
            self.compared += x.shape[0]

    def tensors(self) -> list[torch.Tensor]:
        """Return the numbers of tokens, on the CPU, and the sums: what another process needs to add them to its own."""
        sums = (self.squares, self.gram, self.cross)
        return [torch.tensor([self.tokens, self.compared]), self.largest, *(each for each in sums if each is not None)]

    def fill(self, receive: Callable[[list[torch.Tensor]], None]) -> None:
        """Become what another collector has, whose `tensors` `receive` writes into those that it is given."""
        tensors = self.tensors()
        receive(tensors)
        self.tokens, self.compared = tensors[0].tolist()

    def merge(self, other: StatisticsCollector) -> None:
        """Add the sums of another collector."""
        self.tokens += other.tokens
        self.compared += other.compared
        self.largest = torch.maximum(self.largest, other.largest)
        for own, more in zip(self.tensors()[2:], other.tensors()[2:], strict=True):
            own.add_(more)

    def clear(self) -> None:
        """Begin again from nothing."""
        self.tokens = self.compared = 0
        for tensor in self.tensors()[1:]:
            tensor.zero_()

    def finish(self) -> Statistics:
        return Statistics(
            tokens=self.tokens,
            largest_input=self.largest,
            input_norms=None if self.squares is None else statistics.input_norms(self.squares),
            hessian=None if self.gram is None else statistics.finish_gram(self.gram, self.tokens),
            cross=None if self.cross is None else statistics.finish_cross(self.cross, self.compared),
        )

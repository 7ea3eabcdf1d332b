"""How many versions of a model calibration batches run through, and which batches run through the second one. No torch.

The statistic "cross" (GPTAQ) compares inputs of linears with those in the unchanged model, which costs a forward of its
own and a product that is twice that of the second moment. A method may compare some of the batches, spread over the
data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairedLanes:
    """`lanes` versions of the model; every `every`-th batch runs through the second one, every `counted`-th counts."""

    lanes: int = 1
    every: int = 1
    counted: int = 1

    @property
    def forwards(self) -> float:
        """Return the forwards of a layer, in multiples of one over all tokens."""
        return 1 + (self.lanes - 1) / self.every


def paired_lanes(statistics: str, compared_every: int, *, learns: bool, has_experts: bool) -> PairedLanes:
    """Return what a method needs that collects `statistics`, "cross" of every `compared_every`-th batch.

    One that `learns` compares the outputs of all batches. Experts get the tokens of all batches at once, so that every
    batch runs through both.
    """
    if statistics != "cross" and not learns:
        return PairedLanes()
    counted = 1 if has_experts else compared_every
    return PairedLanes(2, 1 if learns else counted, counted)

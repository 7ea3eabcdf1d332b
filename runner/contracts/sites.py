"""A site: one matrix of a model that is multiplied, and its role. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

# Matrices that hold several of these in one tensor have roles of their own: "qkv" (GPT-2's c_attn), "gate_up" (Phi-3).
ROLES = (
    "q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "router", "expert_gate", "expert_up", "expert_gate_up",
    "expert_down", "head", "embedding", "vision", "mtp", "conv", "norm", "other",
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A matrix [rows, columns] that multiplies an input of `columns` features.

    name        of its module in the checkpoint, without ".weight"; patterns, plans, cards and reports use this name
    tensor      the parameter that holds it, "<name>.weight"; where it is packed, no tensor of that name is stored
    index       its place in a tensor that holds one matrix for each expert [experts, rows, columns]; else None
    transposed  stored as [columns, rows] (GPT-2's Conv1D)
    layer       the number of its decoder layer
    role        one of ROLES
    fused_with  the sites that servers fuse with it, by name: q with k and v, gate with up
    """

    name: str
    tensor: str
    index: int | None
    transposed: bool
    rows: int
    columns: int
    layer: int
    role: str = "other"
    fused_with: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of its weights."""
        return self.rows * self.columns

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
    tensor      the tensor that holds it, "<name>.weight"; where it is packed, no tensor of that name is stored
    index       its place in a tensor that holds one matrix for each expert [experts, …]; else None
    transposed  stored as [columns, rows] (GPT-2's Conv1D, some experts)
    layer       the number of its decoder layer
    role        one of ROLES
    fused_with  the sites that servers fuse with it, by name: q with k and v, gate with up
    part        (k, n): it is the k-th of n equal blocks of rows of that matrix in the tensor
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
    part: tuple[int, int] = (0, 1)

    @property
    def is_expert(self) -> bool:
        """Whether it is a matrix of an expert, which sees only the tokens that are routed there."""
        return self.role.startswith("expert_")

    @property
    def expert(self) -> str:
        """The name of the expert that it belongs to, "" for none: experts are changed one at a time."""
        return self.name.rpartition(".")[0] if self.is_expert else ""

    @property
    def size(self) -> int:
        """The number of its weights."""
        return self.rows * self.columns

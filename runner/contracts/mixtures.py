"""Mixtures of experts: which matrices the experts of a model have, and the names of those. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ExpertMatrix:
    """One projection of every expert of a mixture.

    name       of its site, with {} in place of the number of the expert
    role       a role of runner.contracts.sites: "expert_gate", "expert_up", "expert_gate_up" or "expert_down"
    rows, columns
    tensor     the tensor [experts, …] that holds it for all experts; "" where each expert has tensors of its own
    part       (k, n): in that tensor it is the k-th of n equal blocks of the rows of an expert
    transposed in that tensor the matrix of an expert is [columns, rows]
    """

    name: str
    role: str
    rows: int
    columns: int
    tensor: str = ""
    part: tuple[int, int] = (0, 1)
    transposed: bool = False


@dataclass(frozen=True)
class ExpertParameter:
    """A parameter of transformers' modules of experts: what every expert multiplies by at once, an adapter's target.

    name      in the model: "model.layers.0.mlp.experts.gate_up_proj"
    layer     the number of its decoder layer
    experts   how many there are
    matrices  of each expert, in the order in which their rows follow one another
    """

    name: str
    layer: int
    experts: int
    matrices: tuple[ExpertMatrix, ...]

    @property
    def rows(self) -> int:
        """The rows of one expert."""
        return sum(each.rows for each in self.matrices)

    @property
    def columns(self) -> int:
        return self.matrices[0].columns

    def sites(self) -> tuple[str, ...]:
        """Return the names of its sites, expert by expert."""
        return tuple(each.name.format(expert) for expert in range(self.experts) for each in self.matrices)

    def adapter_size(self, rank: int) -> int:
        """Return the number of weights of an adapter of this rank for each expert."""
        return self.experts * rank * (self.rows + self.columns)


@dataclass(frozen=True)
class Mixture:
    """The experts of one module of a model.

    name         of the module in the model: "model.layers.0.mlp.experts"
    layer        the number of its decoder layer
    experts      how many there are
    matrices     what each expert multiplies by, in the order in which their rows follow one another, the last one down
    active       how many of them a token is routed to; 0 where the model does not say
    unfollowed   why single experts cannot be changed; "" where they can
    unpackable   why transformers cannot load experts that are stored packed; "" where it can
    groups       the equal groups of neighbouring experts of which a router chooses some first; 1 where it has none
    """

    name: str
    layer: int
    experts: int
    matrices: tuple[ExpertMatrix, ...] = ()
    active: int = 0
    unfollowed: str = ""
    unpackable: str = ""
    groups: int = 1

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Mixture:
        matrices = tuple(ExpertMatrix(**{**each, "part": tuple(each["part"])}) for each in document["matrices"])
        return cls(**{**document, "matrices": matrices})

    def sites(self, expert: int) -> tuple[str, ...]:
        """Return the names of the sites of one expert, in the order of `matrices`."""
        return tuple(each.name.format(expert) for each in self.matrices)

    def parameters(self) -> tuple[ExpertParameter, ...]:
        """Return the parameters of the module that hold the matrices; none where single experts cannot be followed."""
        last = tuple(each for each in self.matrices if each.role == "expert_down")
        first = tuple(each for each in self.matrices if each not in last)
        up = "up_proj" if [each.role for each in first] == ["expert_up"] else "gate_up_proj"
        named = {up: first, "down_proj": last} if not self.unfollowed else {}
        return tuple(
            ExpertParameter(f"{self.name}.{key}", self.layer, self.experts, each) for key, each in named.items() if each
        )

    def tensors(self) -> tuple[str, ...]:
        """Return the tensors that hold several experts, each once."""
        return tuple(dict.fromkeys(each.tensor for each in self.matrices if each.tensor))


def counts(results: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many experts a step changed, how many saw too few tokens, and the fewest that one saw.

    `results` is what the record says of each layer: of the matrices of experts, the `tokens` routed to them, and
    whether they were too few, `below_floor`. Empty where no expert was changed by what tokens say.
    """
    seen: dict[str, tuple[int, int]] = {}
    for layer in results:
        for name, module in layer["modules"].items():
            if "tokens" in module:
                expert = name.rpartition(".")[0]
                _, below = seen.get(expert, (0, 0))
                seen[expert] = module["tokens"], max(below, module["below_floor"])
    if not seen:
        return {}
    return {
        "experts": len(seen),
        "experts_below_floor": sum(below for _, below in seen.values()),
        "expert_tokens_min": min(tokens for tokens, _ in seen.values()),
    }

"""How transformers describes a checkpoint: its model without weights, the tensors it reads, and its errors.

The description is made by `runner.model.layerwise.describe`, which imports torch, and read by the planner, which does
not; it travels between them as JSON.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from runner.contracts.mixtures import Mixture

# What the module that holds a parameter does with it.
LINEAR, CONV1D, EMBEDDING, NORM, CONV = "linear", "conv1d", "embedding", "norm", "conv"
OTHER, BUFFER = "other", "buffer"


@dataclass(frozen=True)
class Problem:
    """An error of transformers.

    stage  "config", "model" or "forward": reading config.json, building the model, running it; "generation" for
           generation_config.json, "tokenizer" for the files of the tokenizer; "stream": running it a layer at a time
    error  the name of the exception's class; of the stage "stream" the code of the complaint
    words  its message
    keys   the keys of the file that it concerns: those that transformers names, or those whose default value works
    """

    stage: str
    error: str
    words: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model, or a buffer that checkpoints hold.

    name      in the model: "model.layers.0.self_attn.q_proj.weight"
    stored    in the checkpoint; None where no tensor of its own is stored there
    shape     as the model expects it
    kind      LINEAR and so on: what its module does
    module    the class of its module
    """

    name: str
    stored: str | None
    shape: tuple[int, ...]
    kind: str
    module: str


def is_of_experts(parameter: Parameter) -> bool:
    """Return whether a parameter holds weights of experts, by the names that transformers gives modules and classes."""
    return "experts" in parameter.name.split(".") or "Expert" in parameter.module


@dataclass(frozen=True)
class LinearModule:
    """A linear module of the model, as readers of quantized checkpoints find them: by its class.

    name     in the model
    stored   the module in the checkpoint that holds its weight; None where no tensor of its own is stored there
    called   whether a forward calls it; None where no forward could be tried
    flat     whether a forward gives it inputs [tokens, columns], without the dimension of windows
    """

    name: str
    stored: str | None
    called: bool | None = None
    flat: bool = False


@dataclass(frozen=True)
class CachedAttention:
    """An attention module whose cache of keys and values readers of quantized checkpoints find, by its class.

    name                    in the model
    stored                  in the checkpoint
    key_heads, value_heads  of what a forward puts into its cache; 0 where no forward puts anything there
    """

    name: str
    stored: str
    key_heads: int
    value_heads: int


@dataclass(frozen=True)
class Linears:
    """Every linear module of a model, including those of heads and towers and those that are never called.

    needed    whether transformers' own code reads their weights while it loads the model, so that it cannot load them
              packed
    mixtures  modules that hold experts, which are no linear modules
    """

    modules: tuple[LinearModule, ...] = ()
    needed: bool = False
    mixtures: tuple[Mixture, ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Linears:
        return cls(
            tuple(LinearModule(**each) for each in document["modules"]),
            bool(document["needed"]),
            tuple(Mixture.from_json(each) for each in document["mixtures"]),
        )

    def unpacked(self, packed: Container[str]) -> list[str]:
        """Return the modules that are not `packed`, by their names in the model and in the checkpoint, sorted."""
        rest = [each for each in self.modules if each.stored is None or each.stored not in packed]
        return sorted({name for each in rest for name in (each.name, each.stored) if name is not None})

    def uncalled(self) -> set[str]:
        """Return the modules of the checkpoint that no forward of the model calls."""
        return {each.stored for each in self.modules if each.stored is not None and each.called is False}


@dataclass(frozen=True)
class ModelDescription:
    """A checkpoint as transformers reads it. Where `problems` is not empty, other fields may be empty.

    architecture  the class of the model
    layers        the name of the list of decoder layers in the model, "model.layers"; "" where there is none
    layer_count   how many there are
    parameters    in the order of the model
    ties          parameter → the one whose stored tensor it uses, both by their names in the model; decided by which of
                  them are stored. Where both are stored, `both_stored` has them, and their bytes decide.
    both_stored   parameter → the one that config.json ties it to
    missing       parameters that no tensor of the checkpoint gives
    misshaped     parameter → the shape of its tensor, where the two differ
    packed        stored tensors that belong to a packed weight: scales, zero points
    ignored       stored tensors that the architecture leaves unread by design
    unexpected    stored tensors that the model does not use
    converted     stored tensors that transformers converts into others on loading
    duplicates    parameter → all stored tensors that stand for it, if several do
    linears       its linear modules
    caches        its attention modules with a cache; None where no forward could be tried
    counts_heads  whether readers of caches find the number of their heads in the configuration
    built         stored tensors that transformers makes others of on loading, which the stream does too; those of
                  experts that can be followed are not among them
    experts       a parameter that holds weights of several experts, or of one of several; "" for a dense model
    hands_state   layers hand one another more than hidden states: keys and values
    warnings      what transformers logged
    """

    architecture: str = ""
    layers: str = ""
    layer_count: int = 0
    parameters: tuple[Parameter, ...] = ()
    ties: Mapping[str, str] | None = None
    both_stored: Mapping[str, str] | None = None
    missing: tuple[str, ...] = ()
    misshaped: Mapping[str, tuple[int, ...]] | None = None
    packed: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    duplicates: Mapping[str, tuple[str, ...]] | None = None
    problems: tuple[Problem, ...] = ()
    linears: Linears = field(default_factory=Linears)
    caches: tuple[CachedAttention, ...] | None = None
    counts_heads: bool = True
    experts: str = ""
    built: tuple[str, ...] = ()
    hands_state: bool = False
    warnings: tuple[str, ...] = ()

    def layers_prefix(self) -> str | None:
        """Return the prefix of the decoder layers' tensors in the checkpoint; None where it is not known."""
        inside = f"{self.layers}.0."
        for each in self.parameters if self.layers else ():
            if each.stored is not None and each.name.startswith(inside):
                tail = each.name[len(inside) - 2 :]
                if each.stored.endswith(tail):
                    return each.stored.removesuffix(tail)
        return None


def to_json(description: ModelDescription) -> dict[str, Any]:
    return asdict(description)


def from_json(document: Mapping[str, Any]) -> ModelDescription:
    """Return the description that `to_json` wrote. Raises KeyError or TypeError for anything else."""
    plain = {each.name: document[each.name] for each in fields(ModelDescription)}
    lists = ("missing", "packed", "ignored", "unexpected", "converted", "built", "warnings")
    return ModelDescription(
        **{
            **plain,
            **{name: tuple(plain[name]) for name in lists},
            "parameters": tuple(Parameter(**{**each, "shape": tuple(each["shape"])}) for each in plain["parameters"]),
            "misshaped": {name: tuple(shape) for name, shape in (plain["misshaped"] or {}).items()},
            "duplicates": {name: tuple(stored) for name, stored in (plain["duplicates"] or {}).items()},
            "linears": Linears.from_json(plain["linears"]),
            "caches": None if plain["caches"] is None else tuple(CachedAttention(**each) for each in plain["caches"]),
            "problems": tuple(Problem(**{**each, "keys": tuple(each["keys"])}) for each in plain["problems"]),
        }
    )

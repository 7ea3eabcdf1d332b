"""Find the mixtures of experts of a model, and which rows of which stored tensors each expert multiplies by.

transformers 5 holds the experts of a layer in parameters [experts, rows, columns], made of one tensor for each expert
where they are stored so. Which tensor goes where is found by converting small tensors of known values, so that nothing
is assumed about what a converter does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from runner.contracts.mixtures import ExpertMatrix, Mixture
from runner.model.layerwise.conversions import Conversions, Group
from runner.model.layerwise.expert_stream import runs_one_by_one
from runner.model.layerwise.tensor_names import NameMap

_ROWS, _COLUMNS = 2, 3  # of the small tensors
_LAST = {"expert_gate": "gate_proj", "expert_up": "up_proj", "expert_gate_up": "gate_up_proj",
         "expert_down": "down_proj"}  # fmt: skip
_FUSED = "transformers keeps the experts of this architecture in one tensor and has no packed form of it"
_ORDER = "transformers makes `{}` of stored tensors in a way that does not keep the rows of an expert together"


def find(model: Any, layers: str, names: NameMap, made: Conversions) -> tuple[Mixture, ...]:
    """The mixtures in the decoder layers of a model, the module list called `layers`."""
    found = []
    for name, module in _modules(model, layers):
        layer = int(name.removeprefix(f"{layers}.").split(".")[0])
        if not runs_one_by_one(module):
            kind = type(module).__name__
            reason = f"transformers has no common way of running its experts, which are a `{kind}`"
            found.append(Mixture(name, layer, 0, unfollowed=reason))
            continue
        parameters = [key for key in ("gate_up_proj", "up_proj", "down_proj") if key in module._parameters]
        count = int(module.get_parameter(parameters[0]).shape[0])
        matrices: list[ExpertMatrix] = []
        unfollowed = unpackable = ""
        for key in parameters:
            each = _Parameter(model, layers, name, key, names, made)
            matrices += each.matrices()
            unfollowed = unfollowed or each.unfollowed
            unpackable = unpackable or each.unpackable
        active, groups = _active(model, name), _groups(model, name)
        found.append(Mixture(name, layer, count, tuple(matrices), active, unfollowed, unpackable, groups))
    return tuple(found)


def _active(model: Any, name: str) -> int:
    """How many experts a token is routed to, as the modules around the experts have it."""
    for module in model.get_submodule(name.rpartition(".")[0]).modules():
        count = getattr(module, "top_k", getattr(module, "num_experts_per_tok", None))
        if isinstance(count, int):
            return count
    return 0


def _groups(model: Any, name: str) -> int:
    """Of how many groups of experts a router chooses some first, as the modules around the experts have it."""
    for module in model.get_submodule(name.rpartition(".")[0]).modules():
        count = getattr(module, "num_group", getattr(module, "n_group", None))
        if isinstance(count, int) and count > 1:
            return count
    return 1


def _modules(model: Any, layers: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the decoder layers that hold the weights of several experts, the outermost ones."""
    last = ""
    for name, module in model.named_modules():
        if not name.startswith(f"{layers}.") or (last and name.startswith(f"{last}.")):
            continue
        experts = name.rpartition(".")[2] == "experts" or "Expert" in type(module).__name__
        own = module.parameters(recurse=isinstance(module, nn.ModuleList))
        several = any(each.ndim > 2 or isinstance(module, nn.ModuleList) for each in own)
        if experts and several:
            last = name
            yield name, module


class _Parameter:
    """One parameter of a module of experts, and the stored tensors that it is made of."""

    def __init__(self, model: Any, layers: str, module: str, key: str, names: NameMap, made: Conversions) -> None:
        self.experts = model.get_submodule(module)
        self.key, self.names, self.made = key, names, made
        self.name = f"{module}.{key}"
        self.prefix = f"{_stored_prefix(layers, names)}{module.removeprefix(layers + '.')}"
        self.unfollowed = self.unpackable = ""

    def matrices(self) -> list[ExpertMatrix]:
        """The matrices in it; `unfollowed` and `unpackable` have been set afterwards."""
        shape = self.experts.get_parameter(self.key).shape
        rows, columns = reversed(shape[1:]) if self.experts.is_transposed else shape[1:]
        roles = ["expert_down"] if self.key == "down_proj" else ["expert_up"]
        if self.key == "gate_up_proj":
            roles = ["expert_gate", "expert_up"] if self.experts.is_concatenated else ["expert_gate_up"]
        if self.name in self.made:
            group = self.made.group(self.name)
            if len(group.sources) > 1:
                return self._of_separate(group, int(shape[0]), rows, columns, roles)
            transposed = self._turned(group)
            stored = group.sources[0][0]
        else:
            transposed, stored = self.experts.is_transposed, self.names.stored_name(self.name) or ""
        if not stored:
            self.unfollowed = f"no tensor of the checkpoint is `{self.name}`"
            return []
        found = []
        written = self._separate_names(stored, int(shape[0]), len(roles))
        if not written:
            self.unpackable = _FUSED
        for number, role in enumerate(roles):
            name = written[number] if written else f"{self.prefix}.{{}}.{_LAST[role]}"
            part = (number, len(roles))
            found.append(ExpertMatrix(name, role, rows // len(roles), columns, stored, part, transposed))
        return found

    def _of_separate(self, group: Group, experts: int, rows: int, columns: int, roles: list[str]) -> list[ExpertMatrix]:
        """The matrices where each expert has tensors of its own."""
        order = _order(self.made, group, self.name, experts, self.experts.is_transposed)
        names = [_template([name.removesuffix(".weight") for name in each]) for each in order]
        if len(names) not in (1, len(roles)) or not all(names):
            self.unfollowed = _ORDER.format(self.name)
            return []
        if len(names) == 1 and len(roles) > 1:
            roles = ["expert_gate_up"]
        return [ExpertMatrix(name, role, rows // len(roles), columns) for name, role in zip(names, roles, strict=True)]

    def _turned(self, group: Group) -> bool:
        """Whether the one tensor that a converter takes holds the matrices of experts as [columns, rows].

        Some converters turn whatever does not have the parameter's shape: a small tensor shows that they keep all
        values in place or turn them, and the stored shape which of the two they do.
        """
        given = torch.arange(24.0).view(2, 3, 4)
        try:
            result = self.made.made(group, lambda _: given).get(self.name)
        except Exception:  # noqa: BLE001  whatever a converter raises, it cannot be followed
            result = None
        straight, turned = (result is not None and torch.equal(result, each) for each in (given, given.mT))
        if not (straight or turned):
            self.unfollowed = _ORDER.format(self.name)
            return False
        stored = self.made.stored_shape(group.sources[0][0])
        if stored[1] != stored[2]:
            turned = self.made.shapes[self.name] != stored
        else:
            rows = torch.arange(stored[1]).to(torch.uint8).view(1, -1, 1).expand(stored)
            turned = not torch.equal(self.made.made(group, lambda _: rows)[self.name], rows)
        return bool(self.experts.is_transposed) != turned

    def _separate_names(self, stored: str, experts: int, parts: int) -> list[str]:
        """The names, with {} for the number of the expert, by which transformers would take single experts.

        Empty where it takes this tensor alone.
        """
        prefix = stored.rpartition(".")[0]
        for converter in self.names.converters:
            tails = [pattern.rpartition("*.")[2] for pattern in converter.source_patterns if "*." in pattern]
            names = [f"{prefix}.{{}}.{tail}" for tail in tails]
            if len(names) != len(converter.source_patterns):
                continue
            matched = [self.names.rename(name.format(0)) for name in names]
            if any(target != self.name or pattern is None for target, pattern in matched):
                continue
            sources = [(name.format(e), str(pattern)) for e in range(experts)
                       for name, (_, pattern) in zip(names, matched, strict=True)]  # fmt: skip
            group = Group(self.name, tuple(sources), converter)
            order = _order(self.made, group, self.name, experts, self.experts.is_transposed)
            found = [_template([name.removesuffix(".weight") for name in each]) for each in order]
            if len(found) == parts and all(found):
                return found
        return []


def _order(made: Conversions, group: Group, parameter: str, experts: int, transposed: bool) -> list[list[str]]:
    """The stored tensors whose rows follow one another in a parameter: a list for each block of rows, by expert.

    Empty where the parameter is not made of whole tensors.
    """
    names = [name for name, _ in group.sources]
    size = _ROWS * _COLUMNS
    values = {name: torch.arange(size).view(_ROWS, _COLUMNS) + size * i for i, name in enumerate(names)}
    try:
        result = made.made(group, lambda name: values[name]).get(parameter)
    except Exception:  # noqa: BLE001  whatever a converter raises, it cannot be followed
        return []
    if result is None or result.ndim != 3 or len(result) != experts:
        return []
    matrices = result.mT if transposed else result
    blocks = matrices.shape[1] // _ROWS
    if tuple(matrices.shape[1:]) != (blocks * _ROWS, _COLUMNS) or blocks * experts != len(names):
        return []
    found: list[list[str]] = [[] for _ in range(blocks)]
    for matrix in matrices:
        for block, values_there in zip(found, matrix.split(_ROWS), strict=True):
            name = names[int(values_there[0, 0]) // size]
            if not torch.equal(values_there, values[name]):
                return []
            block.append(name)
    return found


def misplaced(groups: Iterable[Group], shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[str], list[str]]:
    """The tensors of single experts that a model of parameters of these `shapes` lacks, and those that it has not.

    Of groups of tensors whose names differ in the number of an expert.
    """
    missing: list[str] = []
    extra: list[str] = []
    for group in groups:
        count = next(iter(shapes.get(group.target, ())), 0)
        names = [name for name, _ in group.sources]
        for template in dict.fromkeys(_numbered(name) for name in names) if count else ():
            numbers = {int(part) for part in (_number(name, template) for name in names) if part is not None}
            missing += [template.format(number) for number in range(count) if number not in numbers]
            extra += [template.format(number) for number in sorted(numbers) if number >= count]
    return missing, extra


def _numbered(name: str) -> str:
    """A name with {} in place of its last number."""
    parts = name.split(".")
    place = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join("{}" if i == place else part for i, part in enumerate(parts))


def _number(name: str, template: str) -> str | None:
    """The number in place of {}; None for a name of another kind."""
    before, _, after = template.partition("{}")
    number = name.removeprefix(before).removesuffix(after)
    return number if number.isdigit() and template.format(number) == name else None


def _template(names: list[str]) -> str:
    """What the names of experts 0, 1, 2 … have in common, with {} for the number; "" where they have it otherwise."""
    parts = names[0].split(".")
    places = [i for i, part in enumerate(parts) if part == "0"]
    for place in reversed(places):
        template = ".".join("{}" if i == place else part for i, part in enumerate(parts))
        if all(template.format(number) == name for number, name in enumerate(names)):
            return template
    return ""


def _stored_prefix(layers: str, names: NameMap) -> str:
    """The prefix of the decoder layers' tensors in the checkpoint: "model.layers."."""
    start = f"{layers}.0."
    for name, stored in names.stored.items():
        if name.startswith(start) and stored[0].endswith(name[len(start) - 2 :]):
            return stored[0].removesuffix(name[len(start) - 2 :])
    return f"{layers}."


def by_layer(mixtures: tuple[Mixture, ...]) -> Mapping[int, tuple[Mixture, ...]]:
    """The mixtures of each decoder layer that has any."""
    found: dict[int, tuple[Mixture, ...]] = {}
    for mixture in mixtures:
        found[mixture.layer] = (*found.get(mixture.layer, ()), mixture)
    return found

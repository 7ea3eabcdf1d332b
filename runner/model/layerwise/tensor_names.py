"""The names that a model's parameters have in a checkpoint, and which of them share a tensor, as transformers decides.

Both are decided by the tensors that are there: transformers ties a parameter to another one in either direction, and
leaves two that are both stored with different values apart, whatever config.json says.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.model.architecture import tied_weights
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization import cache_scheme, packed_names
from runner.model.layerwise import conversions
from runner.model.layerwise.conversions import Group

_PACKED = tuple(f".{format.WEIGHT}" for format in formats.all_formats() if format.WEIGHT != "weight")
_SCALES = tuple(f".{format.SCALE}" for format in formats.all_formats())


Equal = Callable[[str, str], bool]  # of two stored tensors


@dataclass(frozen=True)
class NameMap:
    """The names of a model's parameters and buffers in a checkpoint, and which of them share a tensor.

    stored        parameter → its tensors; more than one is an ambiguity
    ties          parameter → the stored parameter whose tensor it shares
    both_stored   parameter → the one that config.json ties it to, where both are stored: their bytes decide
    converted     groups of tensors that transformers makes others of on loading; packed weights are there under the
                  names of plain ones
    packed        tensors that only accompany a packed weight, or a rounded cache of keys and values
    rename        tensor → its parameter, and the pattern of the converter that makes it, if one does
    converters    transformers' converters of this model
    """

    stored: Mapping[str, tuple[str, ...]]
    ties: Mapping[str, str]
    both_stored: Mapping[str, str]
    converted: tuple[Group, ...]
    packed: tuple[str, ...]
    rename: Callable[[str], tuple[str, str | None]] = field(default=lambda name: (name, None))
    converters: tuple[Any, ...] = ()

    def stored_name(self, parameter: str) -> str | None:
        """Return the name of a parameter's tensor, its own or the one that it shares; None without one."""
        own = self.stored.get(parameter) or self.stored.get(self.ties.get(parameter, ""))
        return own[0] if own else None

    def tied_to(self, parameter: str) -> list[str]:
        """Return the other parameters that share their tensor with this one."""
        source = self.ties.get(parameter, parameter)
        return [name for name in (source, *(n for n, s in self.ties.items() if s == source)) if name != parameter]


def name_map(model: Any, tensors: Iterable[str], equal: Equal | None = None) -> NameMap:
    """The names of a model's parameters and buffers, by transformers' own table of renamings.

    A packed weight goes by the name `<module>.weight`, which need not be a tensor. A name that the model does not know
    is kept, renamed.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters: list[Any] = [each for each in transforms if not isinstance(each, WeightRenaming)]
    wanted = model.state_dict()
    there = set(tensors)
    found: defaultdict[str, list[str]] = defaultdict(list)
    converted: list[tuple[str, str, str]] = []
    packed = []

    def rename(weight: str) -> tuple[str, str | None]:
        name, converter = rename_source_key(weight, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and weight in wanted:  # as transformers does: it is not to be renamed
            name, converter = rename_source_key(weight, [], [], model.base_model_prefix, wanted)
        return name, converter

    for stored in sorted(there):
        module, key = packed_names.split(stored)
        weight = f"{module}.weight" if stored.endswith(_PACKED) else stored
        name, converter = rename(weight)
        companion = key != "weight" and weight == stored and _is_packed(module, there)
        extra = (companion or key in cache_scheme.SCALES) and name not in wanted
        if extra if converter is None else companion and key.startswith(("weight_", "weight.")):
            packed.append(stored)
        elif converter is not None:
            converted.append((weight, name, converter))
        else:
            found[name].append(weight)
    names = {name: tuple(stored) for name, stored in found.items()}

    def same(one: str, other: str) -> bool:
        return equal is not None and equal(names[one][0], names[other][0])

    declared = tied_by_configuration(model)
    both = {target: source for target, source in declared.items() if target in names and source in names}
    ties = tied_weights.resolve_ties(declared, names, same) | _aliases(model, declared, names)
    groups = tuple(conversions.groups(converted, converters))
    return NameMap(names, ties, both, groups, tuple(packed), rename, tuple(converters))


def _is_packed(module: str, tensors: set[str]) -> bool:
    """Whether the weight of a module is stored as integers: in place of it, or under its name beside its scales."""
    return any(module + each in tensors for each in (*_PACKED, *_SCALES))


def _aliases(model: Any, declared: Mapping[str, str], stored: Container[str]) -> dict[str, str]:
    """Return what `NameMap.ties` says of modules that are one object in the model's own code."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in declared and name not in declared.values():
            names[id(parameter)].append(name)
    found: dict[str, str] = {}
    for same in names.values():
        held = next((name for name in same if name in stored), None)
        if held is not None:
            found |= {name: held for name in same if name not in stored}
    return found


def tied_by_configuration(model: Any) -> dict[str, str]:
    """Parameter → the one that the model's class and config.json tie it to."""
    keys = getattr(model, "_tied_weights_keys", None)
    if isinstance(keys, list | tuple | set):  # of a model's own code, written for transformers before 5
        if not getattr(model.config, "tie_word_embeddings", False):
            return {}
        embedding = model.get_input_embeddings()
        source = next(name for name, module in model.named_modules() if module is embedding)
        return dict.fromkeys(sorted(keys), f"{source}.weight")
    return dict(model.get_expanded_tied_weights_keys(all_submodels=True))


def untie_distinct(model: Any, ties: Mapping[str, str]) -> None:
    """Let the configuration of a model no longer tie what its checkpoint stores with different values.

    Else the next call of `tie_weights` would put one in place of the other. `ties` are those that do share a tensor.
    """
    shared = {frozenset(pair) for pair in ties.items()}
    if any(frozenset(pair) not in shared for pair in tied_by_configuration(model).items()):
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
        model.all_tied_weights_keys = {}


def ignored(model: Any, name: str) -> bool:
    """Whether the architecture leaves a tensor of this name unread by design."""
    patterns = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    buffers = [buffer for buffer, _ in model.named_buffers()]
    if any(buffer.endswith("rotary_emb.inv_freq") for buffer in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(buffer.endswith("position_ids") for buffer in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return any(re.search(pattern, name) for pattern in patterns)


def may_be_missing(model: Any, name: str) -> bool:
    """Whether the architecture does without a tensor of this name by design."""
    return any(re.search(pattern, name) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ())

"""The names that a model's parameters have in a checkpoint, and which of them share a tensor, as transformers decides.

Both are decided by the tensors that are there: transformers ties a parameter to another one in either direction, and
leaves two that are both stored with different values apart, whatever config.json says.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runner.model.checkpoint import formats

_PACKED = tuple(f".{format.WEIGHT}" for format in formats.all_formats() if format.WEIGHT != "weight")
_SCALES = tuple(f".{format.SCALE}" for format in formats.all_formats())


@dataclass(frozen=True)
class Names:
    """parameter → its tensors in the checkpoint (more than one is an ambiguity); tensors that are converted on loading;

    tensors that only accompany a packed weight.
    """

    stored: Mapping[str, tuple[str, ...]]
    converted: tuple[str, ...]
    packed: tuple[str, ...]


def names_of(model: Any, tensors: Iterable[str]) -> Names:
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
    converted, packed = [], []
    for stored in sorted(there):
        module, _, key = stored.rpartition(".")
        weight = f"{module}.weight" if stored.endswith(_PACKED) else stored
        name, converter = rename_source_key(weight, renamings, converters, model.base_model_prefix, wanted)
        if converter is not None:
            converted.append(stored)
        elif name not in wanted and key != "weight" and _is_packed(module, there):
            packed.append(stored)
        else:
            found[name].append(weight)
    return Names({name: tuple(stored) for name, stored in found.items()}, tuple(converted), tuple(packed))


def _is_packed(module: str, tensors: set[str]) -> bool:
    """Whether the weight of a module is stored as integers: in place of it, or under its name beside its scales."""
    return any(module + each in tensors for each in (*_PACKED, *_SCALES))


def ties(model: Any, stored: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Parameter → the one whose tensor it uses; and parameter → the one it is to be tied to where both are stored.

    `stored` are the parameters, by their names in the model, that the checkpoint holds.
    """
    there = set(stored)
    asked = tied_by_configuration(model)
    found: dict[str, str] = {}
    both: dict[str, str] = {}
    for target, source in asked.items():
        if target in there and source in there:
            both[target] = source
        elif source in there:
            found[target] = source
        elif target in there:
            found[source] = target
        else:
            held = next((name for name, other in asked.items() if other == source and name in there), None)
            if held is not None:
                found[target] = held
    aliases: defaultdict[int, list[str]] = defaultdict(list)  # modules that are one object in the model's own code
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in asked and name not in asked.values():
            aliases[id(parameter)].append(name)
    for same in aliases.values():
        held = next((name for name in same if name in there), None)
        if held is not None:
            found |= {name: held for name in same if name not in there}
    return found, both


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

"""The decoder layers of a checkpoint, found from the names and shapes of its tensors alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.model_config import ModelConfig
from runner.contracts.sites import Site
from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import sites, supported, supported_weights
from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.format import Format
from runner.model.checkpoint.quantization.scheme import integers

_REMEDY = "the checkpoint is incomplete or was edited; download it again"
_SHOWN = 12  # complaints of one class; a shard that went wrong would repeat itself thousands of times


def build(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorHeader],
    source: str,
    packed_shapes: Mapping[str, Sequence[int]],
    prefix: str | None = None,
) -> CheckpointFacts:
    """Facts of a checkpoint, or RecipeError where it cannot be read.

    `packed_shapes` are the [out_features, in_features] that compressed-tensors stores beside packed weights, where
    they could be read; `prefix` is that of the decoder layers where it is known.
    """
    found_prefix, members = find(tensors, prefix)
    if not found_prefix:
        raise RecipeError([_no_layers(tensors, source)])
    prefix = found_prefix
    found = sites.with_fused(candidates(config, tensors, prefix, members, packed_shapes))
    refusal = supported_weights.refuse(config, tensors, found, source)
    if refusal:
        raise RecipeError([refusal])
    return CheckpointFacts(
        source=source,
        config=ModelConfig.of(config),
        tensors=tensors,
        layers_prefix=prefix,
        layer_count=len(members),
        sites=found,
        quantization=config.get("quantization_config"),
    )


def complaints(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader], source: str) -> list[Diagnostic]:
    """What headers show to be wrong with a checkpoint that config.json does not fit, for people who look for the cause.

    It takes layers for alike that need not be, so whether anything is wrong is not for it to decide.
    """
    prefix, members = find(tensors)
    found = _gaps(prefix, members, source)
    if found:
        return found
    found = _counted(config, prefix, members, source) + _embedding(config, tensors, source)
    return found + _uneven(config, tensors, prefix, members)


def miscounted(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader], source: str) -> list[Diagnostic]:
    """The complaint about another number of decoder layers than config.json has."""
    return _counted(config, *find(tensors), source)


def find(tensors: Mapping[str, TensorHeader], known: str | None = None) -> tuple[str, dict[int, list[str]]]:
    """The prefix of the decoder layers ("model.layers.") and, by index, the rest of the names of each one's tensors.

    It is the dotted prefix before an integer that holds the most numbered entries with linear weights. Only the first
    integer of a name counts, so that a list inside a layer is never taken for the layers. Or it is the `known` one.
    """
    weights: defaultdict[str, Counter[int]] = defaultdict(Counter)
    members: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, header in tensors.items():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if at is None:
            continue
        prefix, index = "".join(part + "." for part in parts[:at]), int(parts[at])
        members[prefix][index].append(".".join(parts[at + 1 :]))
        if _is_linear(name, header):
            weights[prefix][index] += 1
    if not weights:
        return "", {}
    best = known
    if best is None or best not in weights:
        best = min(weights, key=lambda prefix: (-len(weights[prefix]), -weights[prefix].total(), prefix))
    return best, {index: sorted(members[best][index]) for index in sorted(members[best])}


def prefix_of(sites: Iterable[str]) -> str | None:
    """The prefix of the decoder layers that hold sites of these names; None where there are none."""
    for name in sites:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if at is not None:
            return "".join(part + "." for part in parts[:at])
    return None


def _is_linear(name: str, header: TensorHeader) -> bool:
    return len(header.shape) == 2 and formats.is_weight(name)


def candidates(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorHeader],
    prefix: str,
    members: Mapping[int, Sequence[str]],
    packed_shapes: Mapping[str, Sequence[int]],
) -> tuple[Site, ...]:
    """The matrices of the decoder layers, plain or packed, by layer and then by name.

    Headers do not say which of them multiply: `sites.multiplying` does, once the model was described.
    """
    transposed = config.get("model_type") in supported.CONV1D_TYPES
    found = []
    for index, names in members.items():
        for suffix in names:
            header = tensors[f"{prefix}{index}.{suffix}"]
            if not _is_linear(header.name, header):
                continue
            module = header.name.rpartition(".")[0]
            format = formats.of_module(tensors, module)
            if format is None:
                rows, columns = reversed(header.shape) if transposed else header.shape
            else:
                rows, columns = packed_shapes.get(module) or _unpacked(config, tensors, module, format)
            turned = transposed and format is None
            found.append(Site(module, f"{module}.weight", None, turned, rows, columns, index, sites.role(module)))
    return tuple(sorted(found, key=lambda site: (site.layer, site.name)))


def _unpacked(
    config: Mapping[str, Any], tensors: Mapping[str, TensorHeader], module: str, format: Format
) -> tuple[int, int]:
    """[rows, columns] of a packed weight, from its headers and the number of bits.

    A configuration that cannot be read counts as 4 bits here; it is refused a little later.
    """
    try:
        packing = formats.parse(config.get("quantization_config"))
    except ValueError:
        packing = None
    scheme = packing.scheme(module) if packing else None
    return format.shape(tensors, module, scheme or integers(4, "channel", True))


def _no_layers(tensors: Mapping[str, TensorHeader], source: str) -> Diagnostic:
    numbered = sorted({name for name in tensors if any(part.isdigit() for part in name.split("."))})
    if numbered:
        return Diagnostic(
            "R447",
            f"the numbered layers of `{source}` hold no linear weights: none of its {len(numbered):,} tensors, such as "
            f"`{numbered[0]}`, is a 2-D `.weight`",
            "only models whose decoder layers are built of linear modules can be compressed",
        )
    return Diagnostic(
        "R444",
        f"`{source}` has no decoder layers: none of its {len(tensors):,} tensors has a numbered name such as "
        "`model.layers.0.self_attn.q_proj.weight`",
        "name a decoder-only language model",
    )


def _gaps(prefix: str, members: Mapping[int, Sequence[str]], source: str) -> list[Diagnostic]:
    missing = sorted(set(range(max(members) + 1)) - set(members))
    if not missing:
        return []
    shown = ", ".join(str(index) for index in missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
    noun = "layer" if len(missing) == 1 else "layers"
    return [
        Diagnostic(
            "R446", f"`{source}` lacks {noun} {shown}: its tensors `{prefix}N.` go from 0 to {max(members)}", _REMEDY
        )
    ]


def _counted(
    config: Mapping[str, Any], prefix: str, members: Mapping[int, Sequence[str]], source: str
) -> list[Diagnostic]:
    model = ModelConfig.of(config)
    if not model.layer_count_key or model.layer_count == len(members):
        return []
    return [
        Diagnostic(
            "R445",
            f"config.json of `{source}` has `{model.layer_count_key}` = {model.layer_count}; its shards hold "
            f"{len(members)} decoder layers (`{prefix}0.` to `{prefix}{max(members)}.`)",
            _REMEDY,
        )
    ]


def _embedding(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader], source: str) -> list[Diagnostic]:
    """The token embedding must be [vocab_size, hidden_size] as config.json has them."""
    key = next((key for key in supported.EMBEDDING_SIZE_KEYS if isinstance(config.get(key), int)), None)
    name = next((n for n in tensors if n.endswith(supported.EMBEDDING_NAMES) and len(tensors[n].shape) == 2), None)
    if key is None or name is None or any(part.isdigit() for part in name.split(".")):
        return []
    rows, columns = tensors[name].shape
    vocabulary = config.get("vocab_size")
    if columns == config[key] and (not isinstance(vocabulary, int) or rows == vocabulary):
        return []
    return [
        Diagnostic(
            "R445",
            f"`{name}` of `{source}` has the shape [{rows}, {columns}]; config.json has `vocab_size` = {vocabulary} "
            f"and `{key}` = {config[key]}",
            "config.json belongs to another model; download both together",
        )
    ]


def _uneven(
    config: Mapping[str, Any], tensors: Mapping[str, TensorHeader], prefix: str, members: Mapping[int, Sequence[str]]
) -> list[Diagnostic]:
    """Layers of one kind must hold the same tensors in the same shapes.

    Layers of several kinds are told apart by `layer_types` (and by sharing keys and values) in config.json; where that
    says nothing, a pattern that repeats along the layers counts as intended.
    """
    groups: defaultdict[tuple[str, bool], list[int]] = defaultdict(list)
    types = config.get("layer_types") or config.get("layers_block_type")
    sharing = config.get("num_kv_shared_layers")
    first_shared = len(members) - (sharing if isinstance(sharing, int) else 0)
    for index in members:
        kind = str(types[index]) if isinstance(types, list) and len(types) == len(members) else ""
        groups[kind, index >= first_shared].append(index)
    complaints: list[Diagnostic] = []
    for group in groups.values():
        shapes: defaultdict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
        for index in group:
            for suffix in members[index]:
                shapes[suffix][index] = tensors[f"{prefix}{index}.{suffix}"].shape
        for suffix in sorted(shapes):
            held = shapes[suffix]
            complaints += _missing(prefix, suffix, group, held)
            complaints += _misshaped(prefix, suffix, group, held)
    hidden = len(complaints) - _SHOWN
    if hidden > 0:
        complaints = [
            *complaints[:_SHOWN],
            Diagnostic("R446", f"{hidden:,} more tensors are missing or have other shapes"),
        ]
    return complaints


def _repeats(row: Sequence[Any]) -> bool:
    """True where a sequence is periodic with a period of at most half its length."""
    return any(
        all(row[i] == row[i - period] for i in range(period, len(row))) for period in range(1, len(row) // 2 + 1)
    )


def _others(count: int) -> str:
    return "the other layer has it" if count == 1 else f"the other {count} layers have it"


def _missing(prefix: str, suffix: str, group: Sequence[int], held: Mapping[int, tuple[int, ...]]) -> list[Diagnostic]:
    absent = [index for index in group if index not in held]
    if not absent or len(absent) > len(held) or _repeats([index in held for index in group]):
        return []
    return [
        Diagnostic("R446", f"layer {index} has no `{prefix}{index}.{suffix}`; {_others(len(held))}", _REMEDY)
        for index in absent
    ]


def _misshaped(prefix: str, suffix: str, group: Sequence[int], held: Mapping[int, tuple[int, ...]]) -> list[Diagnostic]:
    counts = Counter(held.values())
    usual, votes = counts.most_common(1)[0]
    if len(counts) == 1 or 2 * votes <= len(held) or _repeats([held.get(index) for index in group]):
        return []
    return [
        Diagnostic(
            "R446",
            f"`{prefix}{index}.{suffix}` has the shape {list(shape)}; in {votes} of {len(held)} layers it is "
            f"{list(usual)}",
            _REMEDY,
        )
        for index, shape in held.items()
        if shape != usual
    ]

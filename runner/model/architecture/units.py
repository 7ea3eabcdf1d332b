"""The units that make a model wide: feed-forward neurons, attention heads, groups of them, channels of hidden states.

`layouts` says which rows and columns of every tensor belong to which unit, so that a narrower model is some rows and
columns of a wider one; `config` and `facts` describe the narrower checkpoint. Imported by the planner: no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from runner import wording
from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.model_config import ModelConfig
from runner.contracts.model_description import BUFFER, ModelDescription
from runner.errors import Diagnostic
from runner.model.architecture.sites import role

# The axes that units lie on. A key-value head is a head of keys and values, which one group of heads shares.
FEED_FORWARD, HEADS, GROUPS, HIDDEN = AXES = ("feed_forward", "heads", "key_value_heads", "hidden_size")

# Decoders built of these modules, each tried against an independently sliced model (tests/steps/prune/test_width.py);
# the axes on which they cannot be cut, with the reason.
_SCALED = "multiplies its embeddings by the square root of the hidden size, which would change"
_WIDE_NORM = "norms queries and keys over all heads, which others would change"
TYPES: Mapping[str, Mapping[str, str]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {}, "phi3": {}, "granite": {}, "smollm3": {},
    "gemma": {HIDDEN: _SCALED}, "gemma2": {HIDDEN: _SCALED}, "gemma3_text": {HIDDEN: _SCALED},
    "olmo2": {HEADS: _WIDE_NORM, GROUPS: _WIDE_NORM},
}  # fmt: skip

# Their configuration in transformers wants a hidden size that the heads divide, though nothing in the model does.
_DIVIDED = frozenset({"llama", "gemma2", "gemma3_text"})

# Role of a module → the axes of its rows, one after another, and of its columns.
_ROWS = {
    "q": (HEADS,), "k": (GROUPS,), "v": (GROUPS,), "qkv": (HEADS, GROUPS, GROUPS), "o": (HIDDEN,),
    "gate": (FEED_FORWARD,), "up": (FEED_FORWARD,), "gate_up": (FEED_FORWARD, FEED_FORWARD), "down": (HIDDEN,),
    "norm": (HIDDEN,), "embedding": (), "head": (),
}  # fmt: skip
_COLUMNS = {
    "q": HIDDEN, "k": HIDDEN, "v": HIDDEN, "qkv": HIDDEN, "o": HEADS, "gate": HIDDEN, "up": HIDDEN, "gate_up": HIDDEN,
    "down": FEED_FORWARD, "embedding": HIDDEN, "head": HIDDEN,
}  # fmt: skip
_HEAD_NORMS = {"q_norm": HEADS, "k_norm": GROUPS}  # over the channels of one head, or of all


@dataclass(frozen=True)
class Widths:
    """How many units a model has on each axis; `head_size` are the channels of a head.

    `divided` says whether the heads must divide the hidden size.
    """

    feed_forward: int
    heads: int
    key_value_heads: int
    hidden_size: int
    head_size: int
    divided: bool = False

    def of(self, axis: str) -> int:
        """Return the number of units on an axis."""
        return int(getattr(self, axis))

    @property
    def group(self) -> int:
        """The heads that share one head of keys and values."""
        return self.heads // self.key_value_heads


@dataclass(frozen=True)
class Block:
    """Rows or columns that follow one another: `units` units on an axis, each of `size` rows or columns."""

    axis: str
    units: int
    size: int


Layout = tuple[tuple[Block, ...], ...]  # of each dimension of a tensor; () for one that holds no units


def widths(facts: CheckpointFacts) -> Widths:
    """Return the widths of a model of one of TYPES, as config.json has them."""
    text = facts.config.text
    heads, hidden = facts.config.heads, facts.config.hidden_size
    size, groups = text.get("head_dim"), text.get("num_key_value_heads")
    sites = (site for site in facts.sites if site.role in ("o", "down"))
    columns = {each.role: each.columns for each in sites}
    return Widths(
        feed_forward=columns.get("down", 0),
        heads=heads,
        key_value_heads=groups if isinstance(groups, int) else heads,
        hidden_size=hidden,
        head_size=size if isinstance(size, int) else columns.get("o", hidden) // max(1, heads),
        divided=facts.config.model_type in _DIVIDED,
    )


def refuse(facts: CheckpointFacts, axes: Collection[str]) -> Diagnostic | None:
    """Return a complaint where a model cannot be cut on these axes, else None."""
    source, known = f"`{facts.source}` (`{facts.config.model_type}`)", TYPES.get(facts.config.model_type)
    if known is None:
        message = f"it is not known which rows and columns of the tensors of {source} belong together"
        return Diagnostic("R801", message, f"types that can be made narrower are {wording.ticked(sorted(TYPES))}")
    for axis in AXES:
        if axis in axes and axis in known:
            message = f"`{axis}` of {source} cannot be cut: the model {known[axis]}"
            return Diagnostic("R801", message, "leave it out", path=(axis,))
    strange = next(iter(_strange(facts)), None)
    if strange is None:
        return None
    message = f"`{strange}` of {source} does not have the shape that config.json and the other layers lead to expect"
    return Diagnostic("R801", message, "only models whose layers all have the same widths can be made narrower")


def _strange(facts: CheckpointFacts) -> list[str]:
    """Return the tensors of the model that have no layout though they should, or one that does not fit their shape."""
    own, found = widths(facts), []
    passed = frozenset(facts.description.ignored) if facts.description is not None else frozenset()
    parameters = facts.description.parameters if facts.description is not None else ()
    buffers = {each.stored for each in parameters if each.kind == BUFFER}
    for name, header in sorted(facts.tensors.items()):
        if name in passed or name in buffers:
            continue
        layout = _layout(name, header.shape, own)
        sums = [sum(block.units * block.size for block in blocks) for blocks in layout or ()]
        if layout is None or any(total not in (0, size) for total, size in zip(sums, header.shape, strict=True)):
            found.append(name)
    return found


def layouts(facts: CheckpointFacts, axes: Collection[str]) -> dict[str, Layout]:
    """Return the layout of every tensor that holds units on `axes`; blocks on other axes are left out where alone."""
    own, found = widths(facts), {}
    for name, header in facts.tensors.items():
        layout = _layout(name, header.shape, own)
        if layout is not None and any(block.axis in axes for blocks in layout for block in blocks):
            found[name] = tuple(blocks if any(b.axis in axes for b in blocks) else () for blocks in layout)
    return found


def _layout(name: str, shape: tuple[int, ...], own: Widths) -> Layout | None:
    """Return the layout of a tensor by its name; None where it is not known."""
    module, _, kind = name.rpartition(".")
    last = module.rpartition(".")[2]
    if last in _HEAD_NORMS:
        return ((),) if shape == (own.head_size,) else ((_block(_HEAD_NORMS[last], own),),)
    part = role(module)
    if part not in _ROWS or kind not in ("weight", "bias") or len(shape) not in (1, 2):
        return None
    rows = tuple(_block(axis, own) for axis in _ROWS[part])
    if len(shape) == 1:
        return (rows,)
    return (rows, (_block(_COLUMNS[part], own),)) if part in _COLUMNS else None


def _block(axis: str, own: Widths) -> Block:
    return Block(axis, own.of(axis), own.head_size if axis in (HEADS, GROUPS) else 1)


def cut_shape(shape: tuple[int, ...], layout: Layout, after: Widths) -> tuple[int, ...]:
    """Return the shape of a tensor in a model of the widths `after`."""
    sizes = (sum(after.of(block.axis) * block.size for block in blocks) for blocks in layout)
    return tuple(total if blocks else size for total, blocks, size in zip(sizes, layout, shape, strict=True))


def config(model: ModelConfig, before: Widths, after: Widths) -> dict[str, Any]:
    """Return config.json of the narrower model.

    The channels of a head are written out, as they are no longer the hidden size by the heads.
    """
    cut = dict(model.raw)
    if after.feed_forward != before.feed_forward:
        cut["intermediate_size"] = after.feed_forward
    if (after.heads, after.key_value_heads) != (before.heads, before.key_value_heads):
        cut |= {"num_attention_heads": after.heads, "num_key_value_heads": after.key_value_heads}
    if after.hidden_size != before.hidden_size:
        cut["hidden_size"] = after.hidden_size
    if (after.hidden_size, after.heads) != (before.hidden_size, before.heads):
        cut["head_dim"] = after.head_size
    return cut


def differing(before: Widths, after: Widths) -> list[str]:
    """Return the axes on which two models differ."""
    return [axis for axis in AXES if after.of(axis) != before.of(axis)]


def facts(source: CheckpointFacts, after: Widths) -> CheckpointFacts:
    """Return the facts of the checkpoint of a narrower model."""
    before = widths(source)
    axes = differing(before, after)
    shapes = {name: cut_shape(source.tensors[name].shape, layout, after)
              for name, layout in layouts(source, axes).items()}  # fmt: skip
    sites = (
        replace(site, rows=shapes[site.tensor][0], columns=shapes[site.tensor][1]) if site.tensor in shapes else site
        for site in source.sites
    )
    return replace(
        source,
        tensors={name: _cut(header, shapes.get(name)) for name, header in source.tensors.items()},
        config=ModelConfig.of(config(source.config, before, after)),
        sites=tuple(sites),
        description=_description(source.description, shapes, after),
    )


def _cut(header: TensorHeader, shape: tuple[int, ...] | None) -> TensorHeader:
    if shape is None:
        return header
    size = header.nbytes // max(1, math.prod(header.shape)) * math.prod(shape)
    return replace(header, shape=shape, end=header.begin + size)


def _description(
    found: ModelDescription | None, shapes: Mapping[str, tuple[int, ...]], after: Widths
) -> ModelDescription | None:
    if found is None:
        return None
    stored = {each.name: each.stored for each in found.parameters}
    tied = {name: stored.get(source) for name, source in (found.ties or {}).items()}
    parameters = tuple(
        replace(each, shape=shapes.get(each.stored or tied.get(each.name) or "", each.shape))
        for each in found.parameters
    )
    groups = after.key_value_heads
    caches = tuple(
        replace(each, key_heads=groups, value_heads=groups) if each.key_heads else each for each in found.caches or ()
    )
    return replace(found, parameters=parameters, caches=None if found.caches is None else caches)

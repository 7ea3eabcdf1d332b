"""The tensors of a GGUF file: of which tensors of the checkpoint each is made, and its type. No torch, no gguf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from runner.contracts.facts import CheckpointFacts
from runner.contracts.sites import Site
from runner.contracts.step_kind import Params
from runner.export import gguf_architecture, gguf_metadata, gguf_types, preflight
from runner.export.gguf_architecture import EXPERTS, Architecture
from runner.export.gguf_blocks import block_type_for

EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"
FREQUENCIES = "rope_freqs.weight"
_EMBEDDING_TENSOR, _HEAD_TENSOR = "token_embd.weight", "output.weight"  # of the file
_IGNORED = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")  # buffers of older checkpoints, which are computed


@dataclass(frozen=True)
class Entry:
    """A tensor of the file.

    sources   the tensors of the checkpoint that it is made of, by the names that they have unpacked; those of all
              experts of a layer are stacked; none for rotary frequencies
    shape     in the file
    type      of gguf_types
    wanted    the type before its columns were looked at; gguf_types.AUTO where an assignment gives it
    heads     the heads of its rows where llama.cpp has another order of rows, else 0
    shifted   whether 1 is added to its values
    packed    whether the checkpoint holds integers of it, which are written as they are
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    type: str
    wanted: str
    heads: int = 0
    shifted: bool = False
    packed: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of the checkpoint that its sources are weights of."""
        return tuple(source.removesuffix(".weight") for source in self.sources)

    @property
    def nbytes(self) -> int:
        """The bytes of its data."""
        count = 1
        for size in self.shape:
            count *= size
        return gguf_types.nbytes(self.type, count)


def entries(
    facts: CheckpointFacts, params: Params, *, tied: bool, assigned: Mapping[str, str] | None = None
) -> tuple[list[Entry], list[str]]:
    """Return the tensors of the file in order, and those of the checkpoint that have no place in it.

    `tied` is whether the head is the embedding; `assigned` has types by the names of tensors. `facts` are those of a
    model that `gguf_refusals.refuse` lets pass.
    Raises ValueError where the quantization of the checkpoint cannot be read.
    """
    own = gguf_architecture.of(facts.config)
    made = _Made(facts, params, own)
    found = [*made.outer(tied), *made.frequencies(), *made.layers()]
    found = [replace(entry, type=(assigned or {}).get(entry.name, entry.type)) for entry in found]
    known = {source for entry in found for source in entry.sources}
    modules = {source.removesuffix(".weight") for source in known if source.endswith(".weight")}
    if tied:
        modules |= {EMBEDDING, HEAD}
    left = [
        name for name in sorted(facts.tensors)
        if name not in known and not name.endswith(_IGNORED) and not _part_of(name, modules)
    ]  # fmt: skip
    return found, left


def _part_of(tensor: str, modules: set[str]) -> bool:
    """Return whether a tensor is one of those of a packed module, or the weight of a tied one."""
    module, _, part = tensor.rpartition(".")
    return module in modules and part != "bias"


class _Made:
    """The entries of one checkpoint, with the choice of their types."""

    def __init__(self, facts: CheckpointFacts, params: Params, own: Architecture) -> None:
        self.facts, self.own, self.config = facts, own, facts.config
        self.dense, self.params = str(params["dense"]), params
        self.packed = {name: scheme for name, (_, scheme) in preflight.schemes(facts).items()}
        self.sites: Mapping[str, Site] = {site.name: site for site in facts.sites}
        queries, keys = gguf_metadata.heads(self.config)
        self.heads = {"attn_q": queries, "attn_k": keys} if own.permuted else {}
        experts = gguf_metadata.experts(self.config)
        calibrated = params.get("data") is not None
        self.model = gguf_types.Model(facts.layer_count, queries // max(1, keys), experts, calibrated)

    def outer(self, tied: bool) -> Iterator[Entry]:
        """Yield embedding, last norm and head; without a head llama.cpp uses the embedding."""
        embedding, head = self._table_types(tied)
        stored = EMBEDDING if f"{EMBEDDING}.weight" in self.facts.tensors or not tied else HEAD
        yield self._matrix(_EMBEDDING_TENSOR, (f"{stored}.weight",), embedding)
        for part in ("weight", "bias") if self.own.layer_norm else ("weight",):
            yield self._vector(f"output_norm.{part}", f"{NORM}.{part}")
        if self.own.head == "tied":
            return
        if not tied:
            yield self._matrix(_HEAD_TENSOR, (f"{HEAD}.weight",), head)
        elif self.own.head == "own":
            yield self._matrix(_HEAD_TENSOR, (f"{stored}.weight",), head)

    def frequencies(self) -> Iterator[Entry]:
        if factors := gguf_metadata.rope_factors(self.config):
            yield Entry(FREQUENCIES, (), (len(factors),), "f32", "f32")

    def layers(self) -> Iterator[Entry]:
        for layer in range(self.facts.layer_count):
            for module, name in self.own.layers.items():
                yield from self._layer(layer, module, name)

    def _layer(self, layer: int, module: str, name: str) -> Iterator[Entry]:
        prefix = f"model.layers.{layer}."
        target = f"blk.{layer}.{name}"
        if EXPERTS in module:
            begin, end = module.split(EXPERTS)
            sources = [f"{prefix}{begin}experts.{n}.{end}.weight" for n in range(self.model.experts)]
            yield self._matrix(f"{target}.weight", tuple(sources), self._type(name, layer))
            return
        source = f"{prefix}{module}.weight"
        if "norm" in name:
            yield self._vector(f"{target}.weight", source)
        elif name == "ffn_gate_inp":
            yield self._matrix(f"{target}.weight", (source,), "f32")
        elif name == "ffn_gate_inp_shexp":
            yield self._vector(f"{target}.weight", source)
        else:
            found = self._matrix(f"{target}.weight", (source,), self._type(name, layer))
            yield replace(found, heads=self.heads.get(name, 0))
        bias = f"{prefix}{module}.bias"
        if module in self.own.biases and bias in self.facts.tensors:
            yield replace(self._vector(f"{target}.bias", bias), heads=self.heads.get(name, 0))

    def _type(self, name: str, layer: int) -> str:
        return gguf_types.layer_type(self.dense, name, layer, self.model)

    def _table_types(self, tied: bool) -> tuple[str, str]:
        """Return the types of embedding and head; those that were not asked for fit."""
        dense = self.dense if self.dense != gguf_types.AUTO else "q4_k_m"
        if self.packed:  # what most of the layers' weights are, not what the rest of them would be
            kinds = [block_type_for(scheme) for scheme in self.packed.values()]
            dense = "q8_0" if kinds.count("q8_0") > len(kinds) / 2 else "q4_0"
        usual = gguf_types.fitting(gguf_types.head_type(dense), self.config.hidden_size)
        given = str(self.params["embedding"]), str(self.params["head"])
        base = gguf_types.fitting(gguf_types.MIXTURES.get(dense, dense), self.config.hidden_size)
        alone = usual if tied or self.packed else base
        embedding = given[0] if given[0] != "auto" else alone
        head = given[1] if given[1] != "auto" else embedding if given[0] != "auto" else usual
        return embedding, head

    def _matrix(self, name: str, sources: tuple[str, ...], wanted: str) -> Entry:
        module = sources[0].removesuffix(".weight")
        rows, columns = self._shape(module)
        shape = (rows, columns) if len(sources) == 1 else (len(sources), rows, columns)
        scheme = self.packed.get(module)
        if scheme is not None:
            type = block_type_for(scheme)
            return Entry(name, sources, shape, type if isinstance(type, str) else "f16", "", packed=True)
        return Entry(name, sources, shape, gguf_types.fitting(wanted, columns), wanted)

    def _vector(self, name: str, source: str) -> Entry:
        header = self.facts.tensors.get(source)
        size = 1
        for each in header.shape if header is not None else (0,):
            size *= each
        return Entry(name, (source,), (size,), "f32", "f32", shifted=self.own.shifted_norms and "norm" in name)

    def _shape(self, module: str) -> tuple[int, int]:
        site = self.sites.get(module)
        if site is not None:
            return site.rows, site.columns
        header = self.facts.tensors.get(f"{module}.weight")
        return (header.shape[0], header.shape[1]) if header is not None else (0, 0)


def calibratable(found: Sequence[Entry]) -> bool:
    """Return whether the head gets blocks whose integers GPTQ can find."""
    head = multiplied(found)
    return head is not None and head.type not in (*gguf_types.FLOATS, *gguf_types.UNEVEN)


def is_weighed(entry: Entry) -> bool:
    """Return whether errors of the columns of a tensor are weighed: of a layer's, rounded to blocks."""
    return entry.name.startswith("blk.") and not entry.packed and entry.type not in gguf_types.FLOATS


def multiplied(found: Sequence[Entry]) -> Entry | None:
    """Return the tensor that the output head is: its own, or the embedding that is both; None where it is packed."""
    head = {entry.name: entry for entry in found}
    entry = head.get(_HEAD_TENSOR, head.get(_EMBEDDING_TENSOR))
    return None if entry is None or entry.packed else entry


def missing(found: list[Entry], facts: CheckpointFacts) -> list[str]:
    """Return the tensors that the file needs and the checkpoint does not have."""
    return [s for entry in found if not entry.packed for s in entry.sources if s not in facts.tensors]

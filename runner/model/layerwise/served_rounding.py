"""Let a loaded decoder layer compute what servers do of a quantized checkpoint: rounded inputs, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import nn

from runner.contracts.mixtures import Mixture
from runner.model.checkpoint.quantization import cache_scheme
from runner.model.checkpoint.quantization.scheme import Numbers
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import activation_rounding, attention_caches
from runner.model.layerwise.expert_stream import ExpertsStandIn
from runner.model.layerwise.rounded_experts import RoundedExperts

if TYPE_CHECKING:
    from runner.model.layerwise.streamed_model import StreamedModel


class Handle(Protocol):
    """What undoes a rounding."""

    def remove(self) -> None: ...


def attach(streamed: StreamedModel, index: int) -> list[Handle]:
    """Round what enters the linears, the experts and the cache of a loaded layer, as the checkpoint says."""
    layer, name = streamed.layers[index], streamed.layer_name(index)
    found: list[Handle] = [*activation_rounding.attach(layer, name, streamed.scheme, streamed.input_scale)]
    return found + _experts(streamed, index) + _caches(streamed, layer, name)


def expert_inputs(reader: CheckpointReader, mixture: Mixture) -> Numbers | None:
    """Return the numbers to which the inputs of all experts of a mixture are rounded; None: they stay as they are.

    The plan refuses mixtures whose experts differ in this (R607).
    """
    first = mixture.sites(0)[0] if mixture.matrices else ""
    if reader.packing is None or not first or not reader.is_packed(first):
        return None
    scheme = reader.packing.scheme(first)
    return None if scheme is None else scheme.activations


def _experts(streamed: StreamedModel, index: int) -> list[Handle]:
    found: list[Handle] = []
    for mixture in streamed.mixtures:
        inputs = expert_inputs(streamed.reader, mixture) if mixture.layer == index else None
        experts = streamed.model.get_submodule(mixture.name)
        if inputs is not None and not isinstance(experts, ExpertsStandIn):  # which round for themselves
            streamed.model.set_submodule(mixture.name, RoundedExperts(experts, inputs))
            found.append(_Replaced(streamed.model, mixture.name, experts))
    return found


@dataclass(frozen=True)
class _Replaced:
    """A module of a model in whose place another one stands until `remove`."""

    model: nn.Module
    name: str
    module: nn.Module

    def remove(self) -> None:
        self.model.set_submodule(self.name, self.module)


def _caches(streamed: StreamedModel, layer: nn.Module, name: str) -> list[Handle]:
    """Round keys and values of `layer`, which has that name, as the checkpoint says."""
    scheme = streamed.reader.packing.cache if streamed.reader.packing else None
    if scheme is None:
        return []
    handles: list[Handle] = []
    for attention, module in attention_caches.within(layer, name).items():
        stored = attention_caches.stored_name(attention, streamed.names.stored_name)
        names = [f"{stored}.{each}" for each in cache_scheme.SCALES]
        if streamed.reader.has(names[0]):  # it has none where it uses the cache of another module
            keys, values = (streamed.reader.read(each).to(streamed.device, streamed.dtype) for each in names)
            handles.append(attention_caches.attach(module, attention_caches.rounding(scheme, keys, values)))
    return handles

"""Rotating what surrounds the decoder layers: embeddings, the last norm, the head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from runner.errors import StepFailed
from runner.model.architecture.tied_config import untied
from runner.model.layerwise.channel_scalings import is_norm, stored_gain
from runner.model.layerwise.layer_trials import Basis
from runner.model.layerwise.rewritten_checkpoint import Outside
from runner.model.layerwise.streamed_model import StreamedModel

_CHUNK = 1 << 14  # rows of a table that are rotated at once


@dataclass(frozen=True)
class RotatedOutside:
    """What changes outside the layers, and how far hidden states and logits are from the original's in float32."""

    outside: Outside
    divergence: float


def rotate_outside(
    streamed: StreamedModel, basis: Basis, ids: torch.Tensor, config: Mapping[str, Any]
) -> RotatedOutside:
    """Let embeddings give hidden states in `basis` and the head take them so; `ids` [windows, length] are tried.

    The weight of the last norm moves into the head. Embeddings and head that share a tensor get one each. Raises
    StepFailed where the model does something else between them.
    """
    streamed.load_rest(dtype=torch.float32)
    try:
        with torch.no_grad():
            tables = _tables(streamed)
            head = streamed.model.get_output_embeddings()
            norm_name, norm = _last_norm(streamed, ids)
            keep = torch.arange(ids.shape[1], device=ids.device)
            hidden, _ = streamed.calls(ids)
            wide = torch.cat([hidden, _random(hidden)])
            logits = streamed.logits(wide, keep)
            for table in tables.values():
                _by_rows(table.weight.data, basis)
            folded = _fold_norm(norm, wide.reshape(-1, wide.shape[-1]), norm_name, basis)
            _by_rows(head.weight.data, lambda rows: basis(rows * folded))
            divergence = max(
                _distance(basis(hidden), streamed.calls(ids)[0]), _distance(logits, streamed.logits(basis(wide), keep))
            )
            head_name = next(name for name, module in streamed.model.named_modules() if module is head)
            changed = [*(f"{name}.weight" for name in tables), f"{head_name}.weight"]
            changed += [f"{norm_name}.{key}" for key, value in norm._parameters.items() if value is not None]
            return RotatedOutside(_written(streamed, changed, config), divergence)
    finally:
        streamed.free_rest()


def _tables(streamed: StreamedModel) -> dict[str, nn.Embedding]:
    """Return the embedding tables outside the layers that are as wide as hidden states."""
    return {
        name: module
        for name, module in streamed.model.named_modules()
        if isinstance(module, nn.Embedding)
        and not name.startswith(f"{streamed.layers_name}.")
        and module.weight.shape[1] == streamed.hidden_size
    }


def _last_norm(streamed: StreamedModel, ids: torch.Tensor) -> tuple[str, nn.Module]:
    """Return the last norm that runs before the head."""
    called: list[str] = []
    handles = []
    for name, module in streamed.model.named_modules():
        if is_norm(module) and not name.startswith(f"{streamed.layers_name}."):
            handles.append(module.register_forward_hook(partial(_note, called, name)))
    try:
        hidden, _ = streamed.calls(ids)
        called.clear()
        streamed.logits(hidden, torch.arange(1, device=ids.device))
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise StepFailed(
            f"{type(streamed.model).__name__} has no norm before its head: hidden states cannot be rotated"
        )
    return called[-1], streamed.model.get_submodule(called[-1])


def _note(called: list[str], name: str, *_: Any) -> None:
    called.append(name)


def _random(hidden: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(hidden.shape, generator=generator).to(hidden)


def _by_rows(table: torch.Tensor, change: Basis) -> None:
    for start in range(0, len(table), _CHUNK):
        rows = slice(start, start + _CHUNK)
        table[rows] = change(table[rows])


def _fold_norm(norm: nn.Module, inputs: torch.Tensor, name: str, basis: Basis) -> torch.Tensor:
    """Let a norm multiply by ones; return what it multiplied by, [hidden]. A bias stays in it, in the new basis."""
    gain = stored_gain(norm, inputs[:8])
    if gain is None:
        raise StepFailed(f"`{name}` is no norm that multiplies by its weight: hidden states cannot be rotated")
    weight, bias = norm.get_parameter("weight").data, norm._parameters.get("bias")
    factors = weight + gain
    if bias is not None:
        if bool((factors == 0).any()):
            raise StepFailed(f"`{name}` multiplies channels by 0 and adds a bias to them: it cannot be rotated")
        bias.data.copy_(basis(bias.data / factors))
    weight.fill_(1 - gain)
    return factors


def _distance(was: torch.Tensor, now: torch.Tensor) -> float:
    return float((now - was).double().norm() / was.double().norm())


def _written(streamed: StreamedModel, parameters: list[str], config: Mapping[str, Any]) -> Outside:
    """Return the changed parameters as tensors in the types they are stored in; shared ones become tensors of their

    own.
    """
    tensors: dict[str, Callable[[], torch.Tensor]] = {}
    changed: dict[str, list[str]] = {}
    shared = False
    for parameter in parameters:
        source = streamed.stored_name(parameter)
        own = streamed.names.stored.get(parameter)
        if source is None:
            raise StepFailed(f"`{parameter}` has no tensor in the checkpoint")
        shared = shared or not own
        name = own[0] if own else parameter
        value = streamed.model.get_parameter(parameter).data.to(streamed.reader.dtype(source)).cpu()
        tensors[name] = partial(_same, value)
        changed.setdefault(source, []).append(name)
    return Outside(tensors, changed, untied(config) if shared else None)


def _same(value: torch.Tensor) -> torch.Tensor:
    return value

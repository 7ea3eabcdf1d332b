"""Rotating a decoder layer in place: its residual stream, and the values of its heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runner.errors import StepFailed
from runner.model.layerwise.channel_scalings import Scaling
from runner.model.layerwise.layer_trials import Basis, inputs_changed, outputs_changed
from runner.model.layerwise.residual_stream import Stream
from runner.model.layerwise.rewritable_layer import RewritableLayer

_TOLERANCE = 1e-3  # of a trial's output


def rotate_stream(layer: RewritableLayer, stream: Stream, basis: Basis) -> None:
    """Let a layer take and give hidden states in `basis`, an orthogonal map of the last dimension.

    The weights of norms move into their readers: W diag(w) Q. What is written to the stream is rotated: Qᵀ W. The bias
    b of a norm stays there, as Qᵀ (b ∕ w). Raises StepFailed where a norm cannot be folded.
    """
    if not stream.writers:
        between = f"`{stream.others[-1]}`, which no linear module reads," if stream.others else "its structure"
        raise _unfit(layer, between)
    for name, readers in stream.readers.items():
        factors = _fold_norm(layer, name, basis)
        for reader in readers:
            weight = layer.weight(reader)
            weight.copy_(basis(weight * factors))
            _note(layer, f"{reader}.weight")
    for name in stream.writers:
        weight = layer.weight(name)
        weight.copy_(basis(weight.T).T)
        _note(layer, f"{name}.weight")
        bias = layer.layer.get_submodule(name)._parameters.get("bias")
        if bias is not None:
            bias.data.copy_(basis(bias.data))
            _note(layer, f"{name}.bias")


def _fold_norm(layer: RewritableLayer, name: str, basis: Basis) -> torch.Tensor:
    """Let a norm multiply by ones; return what it multiplied by, [hidden]."""
    gain = layer.norm_gain(name)
    if gain is None:
        raise _unfit(layer, f"`{name}`, which is not a norm times a weight,")
    module = layer.layer.get_submodule(name)
    weight, bias = module.get_parameter("weight").data, module._parameters.get("bias")
    factors = weight + gain
    if bias is not None:
        if bool((factors == 0).any()):
            raise _unfit(layer, f"`{name}`, which multiplies channels by 0 and adds a bias to them,")
        bias.data.copy_(basis(bias.data / factors))
        _note(layer, f"{name}.bias")
    weight.fill_(1 - gain)
    _note(layer, f"{name}.weight")
    return factors


def _note(layer: RewritableLayer, parameter: str) -> None:
    if layer.stored(parameter) is None:
        raise _unfit(layer, f"`{parameter}`, which is not this layer's alone,")
    layer.changed.add(parameter)


def _unfit(layer: RewritableLayer, what: str) -> StepFailed:
    return StepFailed(
        f"the residual stream of `{layer.name}` cannot be rotated: {what} is in the way",
        "set `residual: false`, which leaves the rotation of heads",
    )


@dataclass(frozen=True)
class HeadValues:
    """Values of heads: output channels of a linear, and the columns of the output projection that read them.

    size   channels of a head
    rows   int64 [groups, size]: the output channels of each group of values
    """

    size: int
    rows: torch.Tensor


def head_values(scaling: Scaling, heads: int) -> HeadValues | None:
    """Return the values of heads if the channels of a scaling lie as those of `heads` heads do, else None."""
    columns = len(scaling.channels)
    if columns % heads or bool((scaling.channels < 0).any()):
        return None
    blocks = scaling.channels.view(heads, -1)
    size = blocks.shape[1]
    places = torch.arange(size)
    if not torch.equal(blocks, blocks[:, :1] + places):
        return None
    starts = blocks[:, 0].unique()
    if bool((starts.diff() < size).any()):
        return None
    return HeadValues(size, starts[:, None] + places)


def rotate_heads(layer: RewritableLayer, scaling: Scaling, values: HeadValues, matrix: torch.Tensor) -> bool:
    """Rotate the values of each head by `matrix` [size, size], and back where they are read; return False, with nothing

    changed, where the layer would not compute the same: what is multiplied channel by channel is no value of a head.
    """
    module = layer.layer.get_submodule(scaling.source)
    readers = [layer.layer.get_submodule(name) for name in scaling.readers]
    turn = matrix.to(layer.scout.hidden)
    rows = values.rows.flatten().to(turn.device)

    def mixed(y: torch.Tensor) -> torch.Tensor:
        y = y.clone()
        y[..., rows] = _by_head(y[..., rows], turn)
        return y

    before = layer.scout.reference()
    with outputs_changed(module, mixed), inputs_changed(readers, lambda x: _by_head(x, turn.T)):
        if not before.divergence() < _TOLERANCE:
            return False
    weight, bias = layer.weight(scaling.source), module._parameters.get("bias")
    weight.copy_(mixed(weight.T).T)
    _note(layer, f"{scaling.source}.weight")
    if bias is not None:
        bias.data.copy_(mixed(bias.data))
        _note(layer, f"{scaling.source}.bias")
    for name in scaling.readers:
        weight = layer.weight(name)
        weight.copy_(_by_head(weight, turn))
        _note(layer, f"{name}.weight")
    return True


def _by_head(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    turned: torch.Tensor = x.unflatten(-1, (-1, len(turn))) @ turn
    return turned.flatten(-2)

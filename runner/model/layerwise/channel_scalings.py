"""Where in a decoder layer the scale of a channel can move: divided where its values arise, multiplied where they are

read. Found on the layer itself, by running it; nothing here knows an architecture or a name.

    norm   → the linears that read its output, unchanged
    linear → the linears that read its output channel by channel, through whatever is linear in it: values through
             attention to the output projection (a channel of grouped values is read by several columns), a gated
             product, a ReLU

Each is tried: the source's output is divided by random scales, its readers' inputs multiplied by them, and the layer's
output must stay. A norm with a further reader, or a norm between values and their reader, fails that and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.model.layerwise.layer_trials import Trial, inputs_changed, inputs_of, outputs_changed, place
from runner.model.layerwise.linear import is_linear, widths

TOLERANCE = 1e-3  # of a trial's output; one that does not preserve the function moves it by tenths
_DRAWS = 8  # inputs that a channel is traced on, until each was seen: a ReLU hides half of them each time
_PROOFS = 2  # inputs that a scaling is tried on
_LOW, _HIGH = 1.5, 3.0  # scales that trace a channel: not 1, which is what a channel without a source shows
_SLACK = 0.2  # of the distance between two of them


@dataclass(frozen=True)
class Scaling:
    """A source whose output channels may be scaled, and the linears that read them. Names are inside the layer.

    channels   int64 [columns of a reader]: the output channel of the source that each column reads; −1 for none
    norm       whether the source is a norm, else a linear
    """

    source: str
    readers: tuple[str, ...]
    channels: torch.Tensor
    norm: bool


def find_scalings(trial: Trial, seed: int = 0) -> list[Scaling]:
    """Return every scaling of a layer, in the order in which its forward reads them.

    `trial` may have few tokens, in a causal model: of the first token, attention gives its own value back, whatever
    queries and keys are, and so shows which channel of a fused projection is whose value.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [drawn(trial, generator) for _ in range(_DRAWS)]
    connected = connections(draws[0])
    order = connected.order
    found: list[Scaling] = []
    taken: set[str] = set()
    for readers, source in connected.groups:
        columns = widths(trial.layer.get_submodule(readers[0]))[1]
        if source is not None:
            norms_own = Scaling(source, readers, torch.arange(columns), True)
            if source not in taken and _holds(norms_own, draws, generator):
                found.append(norms_own)
                taken.add(source)
            continue
        for name in order[: order.index(readers[0])]:
            if name in taken or name in readers:
                continue
            channels = _channels(draws, name, readers[0], generator)
            if channels is not None and _holds(Scaling(name, readers, channels, False), draws, generator):
                found.append(Scaling(name, readers, channels, False))
                taken.add(name)
                break
    return found


def drawn(trial: Trial, generator: torch.Generator) -> Trial:
    """Return the trial with random hidden states of the same spread."""
    spread = trial.hidden.float().std().clamp_min(1e-3)
    hidden = torch.randn(trial.hidden.shape, generator=generator).to(trial.hidden.device) * spread
    return Trial(trial.layer, hidden.to(trial.hidden.dtype), trial.call)


def is_norm(module: nn.Module) -> bool:
    """Whether a module multiplies by a vector: a norm."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1 and not any(True for _ in module.children())


@dataclass(frozen=True)
class Connections:
    """The linears and the norms of a layer, in the order of their calls.

    groups   linears with one input, each group with the norm of that width that made it, if one did
    """

    order: list[str]
    norms: list[str]
    groups: list[tuple[tuple[str, ...], str | None]]


def connections(trial: Trial) -> Connections:
    """Return what is called when a layer runs, and which linears read one tensor."""
    order: list[str] = []
    norms: list[str] = []
    made: dict[Any, str] = {}
    inputs: dict[Any, list[str]] = {}
    kept: list[torch.Tensor] = []  # alive, so that no address is used again while places are compared

    def read(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            if name not in order:
                order.append(name)
                kept.append(given[0])
                inputs.setdefault(place(given[0]), []).append(name)

        return hook

    def give(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                kept.append(output)
                norms.append(name)
                made[place(output)] = name

        return hook

    handles = []
    for name, module in trial.layer.named_modules():
        if is_linear(module):
            handles.append(module.register_forward_pre_hook(read(name)))
        elif is_norm(module):
            handles.append(module.register_forward_hook(give(name)))
    try:
        trial.run()
    finally:
        for handle in handles:
            handle.remove()
    groups = []
    for where, names in inputs.items():
        source = made.get(where)
        width = widths(trial.layer.get_submodule(names[0]))[1]
        if source is not None and trial.layer.get_submodule(source).get_parameter("weight").numel() != width:
            source = None  # a norm over heads
        groups.append((tuple(names), source))
    return Connections(order, norms, groups)


def _holds(scaling: Scaling, draws: Sequence[Trial], generator: torch.Generator) -> bool:
    """Whether the layer's output stays when the source is divided by random scales and its readers multiplied."""
    layer, device = draws[0].layer, draws[0].hidden.device
    module = layer.get_submodule(scaling.source)
    size = len(scaling.channels) if scaling.norm else widths(module)[0]
    scales = (torch.rand(size, generator=generator) * 2 - 1).exp2().to(device)
    known = torch.zeros(size, dtype=torch.bool, device=device)
    known[scaling.channels[scaling.channels >= 0].to(device)] = True
    scales = torch.where(known, scales, 1.0)
    readers = [layer.get_submodule(name) for name in scaling.readers]
    by_column = spread(scales, scaling.channels)
    for trial in draws[:_PROOFS]:
        before = trial.reference()
        with outputs_changed(module, lambda y: y / scales), inputs_changed(readers, lambda x: x * by_column):
            if not before.divergence() < TOLERANCE:
                return False
    return True


def spread(scales: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """Return the scale of every column, from those of the channels [channels]; 1 where it reads none."""
    channels = channels.to(scales.device)
    return torch.where(channels >= 0, scales[channels.clamp_min(0)], 1.0)


def _channels(draws: Sequence[Trial], source: str, reader: str, generator: torch.Generator) -> torch.Tensor | None:
    """Return the channel of a linear's output that each column of a reader is proportional to; None without one.

    Channels are traced on the first token by scaling each with a number of its own.
    """
    layer = draws[0].layer
    rows, columns = widths(layer.get_submodule(source))[0], widths(layer.get_submodule(reader))[1]
    for part in _parts(rows, columns):
        traced = _trace(draws[:1], source, reader, part, generator)
        if traced is None:
            continue
        again = _trace(draws[1:], source, reader, part, generator)
        if again is None:
            continue
        both = torch.where(traced < 0, again, traced)
        if bool(((again < 0) | (again == both)).all()) and bool((both >= 0).any()):
            return both
    return None


def _parts(rows: int, columns: int) -> Iterator[torch.Tensor]:
    """Yield the output channels that may be linear together: all, or a block or a stride of a fused projection."""
    yield torch.arange(rows)
    count, rest = divmod(rows, columns)
    if rest == 0 and count > 1:
        for number in range(count):
            yield torch.arange(number * columns, (number + 1) * columns)
            yield torch.arange(number, rows, count)


def _trace(
    draws: Sequence[Trial], source: str, reader: str, part: torch.Tensor, generator: torch.Generator
) -> torch.Tensor | None:
    """Return int64 [columns]: the channel in `part` that scales each, −1 where it is zero in every draw; else None."""
    layer = draws[0].layer
    module, reading = layer.get_submodule(source), layer.get_submodule(reader)
    distance = (_HIGH - _LOW) / len(part)
    shuffled = torch.randperm(len(part), generator=generator)
    own = _LOW + distance * (shuffled.double() + 0.5)
    channel_of = torch.empty_like(shuffled)
    channel_of[shuffled] = part
    scales = torch.ones(widths(module)[0])
    scales[part] = own.float()
    scales = scales.to(draws[0].hidden.device)
    found = torch.full((widths(reading)[1],), -1)
    for trial in draws:
        before = inputs_of(trial, reading)[0].double().cpu()
        with outputs_changed(module, lambda y: y * scales):
            after = inputs_of(trial, reading)[0].double().cpu()
        live = before.abs() > 1e-4 * before.abs().amax()
        steps = (after / torch.where(live, before, 1.0) - _LOW) / distance - 0.5
        nearest = steps.round()
        if not bool((((steps - nearest).abs() < _SLACK) & (nearest >= 0) & (nearest < len(part)))[live].all()):
            return None
        traced = channel_of[nearest.clamp(0, len(part) - 1).long()]
        if not bool(((found < 0) | (found == traced))[live].all()):
            return None
        found = torch.where(live, traced, found)
        if bool((found >= 0).all()):
            break
    return found


def stored_gain(norm: nn.Module, inputs: torch.Tensor) -> float | None:
    """Return what a norm adds to its weight before multiplying by it: 0 usually, 1 in (1 + w); None for anything else.

    Its output must be (w + gain) · n(x) + bias, which is tried on `inputs` [tokens, hidden].
    """
    weight = norm.get_parameter("weight")
    bias = norm._parameters.get("bias")
    kept = weight.detach().clone()

    def given(value: float) -> torch.Tensor:
        weight.copy_(torch.full_like(weight, value))
        out: torch.Tensor = norm(inputs)
        return out - bias if bias is not None else out

    with torch.no_grad():
        try:
            at_zero, at_one = given(0.0), given(1.0)
            unit = at_one - at_zero
            gains = [gain for gain in (0.0, 1.0) if torch.allclose(at_zero, gain * unit, rtol=1e-4, atol=1e-6)]
            if not gains or not bool(unit.abs().amax() > 0):
                return None
            third = given(-0.5)
            expected = (gains[0] - 0.5) * unit
            return gains[0] if torch.allclose(third, expected, rtol=1e-4, atol=1e-6) else None
        finally:
            weight.copy_(kept)

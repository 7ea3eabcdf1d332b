"""Whether a model can be run a layer at a time, found without its weights.

The model's own forward runs on a few tokens around recorders in the place of its decoder layers, as the stream runs it.
What is outside the layers gets numbers that take no memory: a value for each row, repeated along the row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.contracts.model_description import Problem
from runner.errors import RecipeError
from runner.model.layerwise import handed_values, towers
from runner.model.layerwise.empty_model import build_empty, build_with_buffers
from runner.model.layerwise.layer_arguments import hands_state
from runner.model.layerwise.layer_list import find_layers
from runner.model.layerwise.layer_probes import Call
from runner.model.layerwise.outside_layers import OutsideLayers

STAGE = "stream"
_TOKENS = 8


@dataclass(frozen=True)
class Streamed:
    """What running a model around recorders shows.

    problems     why it cannot be run a layer at a time, with the code of the complaint as `error`; empty if it can
    hands_state  its layers hand one another more than hidden states: keys and values
    """

    problems: tuple[Problem, ...] = ()
    hands_state: bool = False


def check(config: Any, own_code: bool) -> Streamed:
    """Run the forward of a model, without its weights, around recorders."""
    model, built = build_with_buffers(config, dtype=torch.float32, trust_remote_code=own_code)
    model.eval().requires_grad_(False)
    try:
        name, layers = find_layers(model, config)
        _fill(model, name, built)
        ids = torch.arange(4, 4 + _TOKENS)[None] % int(config.get_text_config().vocab_size)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outside = OutsideLayers(model, name, list(layers))
            hidden, calls = outside.calls(ids)
            flow = outside.computed_between(ids)
            later = outside.handed_on(ids)
            if later is not None and not flow and _uses_more(config, own_code):
                flow = f"hands its decoder layer {later} more of what earlier layers return than hidden states"
            if hidden.isnan().any():
                flow = "passes text through its models for images or sound"
            if flow:
                words = f"{type(model).__name__} cannot be run a layer at a time: it {flow}"
                return Streamed((Problem(STAGE, "R405", words),))
        if found := sorted({key for call in calls for key in _not_numbers(call)}):
            words = f"{type(model).__name__} hands its decoder layers NaN as `{found[0]}`, whatever its weights are"
            return Streamed((Problem(STAGE, "R455", words),))
    except RecipeError as error:
        return Streamed(tuple(Problem(STAGE, found.code, found.message) for found in error.diagnostics))
    return Streamed(hands_state=hands_state(calls))


def _uses_more(config: Any, own_code: bool) -> bool:
    """Whether layers use what those before them return beside hidden states, where that is more than None."""
    model = build_empty(config, trust_remote_code=own_code).eval().requires_grad_(False)
    return handed_values.used(model, find_layers(model, config)[1])


def _not_numbers(call: Call) -> Iterator[str]:
    """The names of the arguments of a layer that hold NaN; masks may hold infinities."""
    args, kwargs = call
    for name, value in (*((f"argument {number}", value) for number, value in enumerate(args, 1)), *kwargs.items()):
        tensors = value if isinstance(value, tuple | list) else (value,)
        if any(bool(tensor.isnan().any()) for tensor in tensors if isinstance(tensor, torch.Tensor)):
            yield name


def _fill(model: nn.Module, layers: str, built: dict[str, torch.Tensor]) -> None:
    """Give every parameter and buffer outside the decoder layers values; buffers those that the model's code made.

    Those of towers for images and sound are NaN, as text does not pass through them.
    """
    generator = torch.Generator().manual_seed(0)
    others = towers.towers(model)
    for name, module in model.named_modules():
        if name == layers or name.startswith(layers + "."):
            continue
        if towers.in_tower(name, others):
            towers.leave_out(module, torch.device("cpu"), torch.float32)
            continue
        for key, parameter in module._parameters.items():
            if parameter is not None:
                rows = torch.randn(parameter.shape[:1], generator=generator) * 0.1
                values = rows.reshape(-1, *[1] * (parameter.ndim - 1)).expand(parameter.shape)
                module._parameters[key] = nn.Parameter(values, requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = built[f"{name}.{key}" if name else key]

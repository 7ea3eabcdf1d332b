"""How large the inputs of every linear are in calibration texts: llama.cpp's importance matrix, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from runner.model.layerwise import engine
from runner.model.layerwise.method import Linear, Method, Options, Statistics, Transformed
from runner.model.layerwise.stream_run import StreamInputs, StreamRun


def measure(inputs: StreamInputs, modules: Collection[str], run: StreamRun) -> dict[str, torch.Tensor]:
    """Return E[x²] [in], float32, of the inputs of each module, over the tokens that it sees.

    Experts that no token reaches are absent. A run that was interrupted goes on at its first unfinished layer.
    """
    seen: dict[str, list[float]] = {}  # of the layer that is running

    def transform(linear: Linear, statistics: Statistics, options: Options) -> Transformed:
        energies = statistics.of("input_norms").square() / max(1, statistics.tokens)
        seen.update((name, energies.cpu().tolist()) for name in linear.names)
        return Transformed(weight=linear.weight)

    def unseen(linear: Linear, statistics: Statistics, options: Options) -> Transformed:
        return Transformed(weight=linear.weight)

    def finished(layer: int, changed: Mapping[str, Transformed]) -> dict[str, Any]:
        found = dict(seen)
        seen.clear()
        return {"layer": layer, "modules": {}, "energies": found}

    method = Method(
        transform=transform, options={name: {} for name in modules}, statistics="input_norms", sequential=False,
        fallback=unseen,
    )  # fmt: skip
    results = engine.transform(inputs, method, finished, run, lambda layer, changed: None)
    return {
        name: torch.tensor(energies, dtype=torch.float32)
        for layer in results for name, energies in layer["energies"].items()
    }  # fmt: skip

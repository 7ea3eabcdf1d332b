"""Tokens from a runtime, one after another: the likeliest, or drawn. Imports numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from runner.errors import StepFailed
from runner.runtime.protocol import Ids, Logits, Runtime

Choose = Callable[[Logits], Ids]  # logits of the last position [b, V] → tokens [b]


def likeliest(logits: Logits) -> Ids:
    """The token of the highest logit, the lower id of equal ones."""
    found: Ids = logits.argmax(axis=-1).astype(np.int64)
    return found


def sampler(temperature: float, top_p: float, seed: int) -> Choose:
    """Draw from softmax(logits / temperature), from its likeliest tokens that reach `top_p` together (Holtzman 2020).

    `temperature` 0 takes the likeliest. Equal seeds and logits give equal tokens.
    """
    if temperature <= 0:
        return likeliest
    generator = np.random.default_rng(seed)

    def choose(logits: Logits) -> Ids:
        return np.array([_draw(row, temperature, top_p, generator.random()) for row in logits], dtype=np.int64)

    return choose


def _draw(logits: NDArray[np.float32], temperature: float, top_p: float, uniform: float) -> int:
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order])
    reached = np.cumsum(weights / weights.sum())
    kept = int(np.searchsorted(reached, min(top_p, 1.0))) + 1  # the token that reaches top_p is among them
    kept = min(kept, len(order))
    place = int(np.searchsorted(reached[:kept], uniform * reached[kept - 1], side="right"))
    return int(order[min(place, kept - 1)])


def greedy(runtime: Runtime, ids: Ids, count: int, eos: Collection[int] = ()) -> list[list[int]]:
    """The `count` likeliest tokens after each prompt of `ids` [b, n]; fewer where one of `eos`, kept, ends them."""
    found: list[list[int]] = [[] for _ in ids]
    for tokens in _steps(runtime, ids, count, likeliest):
        for row, token in zip(found, tokens.tolist(), strict=True):
            if not (row and row[-1] in eos):
                row.append(token)
        if all(row[-1] in eos for row in found):
            break
    return found


def stream(
    runtime: Runtime, ids: Ids, count: int, eos: Collection[int] = (), choose: Choose = likeliest
) -> Iterator[int]:
    """The tokens after the one prompt `ids` [1, n] as they come, no more than `count` and the context allow.

    One of `eos` ends them and is not among them. StepFailed where the prompt alone is longer than the context.
    """
    for tokens in _steps(runtime, ids, min(count, max(1, runtime.context - ids.shape[1])), choose):
        token = int(tokens[0])
        if token in eos:
            return
        yield token


def _steps(runtime: Runtime, ids: Ids, count: int, choose: Choose) -> Iterator[Ids]:
    """Tokens [b] of each step; the prompt runs before the first, nothing runs after the last."""
    if count < 1:
        return
    tokens = choose(_sound(runtime.prefill(ids, last=True)[:, -1]))
    yield tokens
    for _ in range(count - 1):
        tokens = choose(_sound(runtime.decode(tokens[:, None])[:, -1]))
        yield tokens


def _sound(logits: Logits) -> Logits:
    """The logits. StepFailed where one is no number: the token that they would give means nothing."""
    if np.isnan(logits).any():
        raise StepFailed(
            "the model's logits are not numbers: its weights are damaged, or its values overflow half precision",
            "`runner verify JOB` tells damage; against overflow build it with `precision: fp32`",
        )
    return logits

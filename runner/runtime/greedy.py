"""Generate tokens with a runtime, greedily or by sampling. Imports only numpy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from runner.errors import StepFailed
from runner.runtime.protocol import Ids, Logits, Runtime

Choose = Callable[[Logits], Ids]  # logits of the last position [b, V] → tokens [b]


def likeliest(logits: Logits) -> Ids:
    """Return the token of the highest logit, the lowest id of equal ones."""
    found: Ids = logits.argmax(axis=-1).astype(np.int64)
    return found


def sampler(temperature: float, top_p: float, seed: int) -> Choose:
    """Return a sampler from softmax(logits / temperature), over its nucleus of mass `top_p` (Holtzman 2020).

    `temperature` 0 chooses the likeliest token. Equal seeds and logits give equal tokens.
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
    size = int(np.searchsorted(reached, min(top_p, 1.0))) + 1  # with the token that reaches top_p
    size = min(size, len(order))
    place = int(np.searchsorted(reached[:size], uniform * reached[size - 1], side="right"))
    return int(order[min(place, size - 1)])


def greedy(runtime: Runtime, ids: Ids, count: int, eos: Collection[int] = ()) -> list[list[int]]:
    """Return `count` greedy tokens after each prompt of `ids` [b, n]; fewer where one in `eos`, included, ends it."""
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
    """Yield tokens after the single prompt `ids` [1, n], no more than `count` and the context allow.

    A token in `eos` ends them and is not yielded. StepFailed where the prompt alone is longer than the context.
    """
    for tokens in _steps(runtime, ids, min(count, max(1, runtime.context - ids.shape[1])), choose):
        token = int(tokens[0])
        if token in eos:
            return
        yield token


def _steps(runtime: Runtime, ids: Ids, count: int, choose: Choose) -> Iterator[Ids]:
    """Yield the tokens [b] of each step: a prefill before the first, a decode before each further one."""
    if count < 1:
        return
    tokens = choose(_sound(runtime.prefill(ids, last=True)[:, -1]))
    yield tokens
    for _ in range(count - 1):
        tokens = choose(_sound(runtime.decode(tokens[:, None])[:, -1]))
        yield tokens


def _sound(logits: Logits) -> Logits:
    """Return the logits. StepFailed where one is NaN, as the chosen token would mean nothing."""
    if np.isnan(logits).any():
        raise StepFailed(
            "the model's logits are not numbers: its weights are damaged, or its values overflow half precision",
            "`runner verify JOB` detects damage; against overflow build it with `precision: fp32`",
        )
    return logits

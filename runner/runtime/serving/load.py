"""The speed of a server under a number of requests at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from runner.runtime.serving.client import Client

_POLL = 0.1
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A request that was answered: seconds until its first piece of text, and how many tokens it brought.

    `counted` is whether the server gave that number; otherwise pieces were counted.
    """

    first: float
    tokens: int
    counted: bool


@dataclass(frozen=True)
class Load:
    """`first` is the median of the seconds to the first token; `rate` is in tokens per second, of all requests."""

    first: float
    rate: float
    tokens: int
    seconds: float
    counted: bool


def measure(client: Client, prompts: Sequence[str], count: int, parallel: int, poll: Callable[[], None]) -> Load:
    """Send all prompts, `parallel` at any time, for `count` tokens each. `poll` is called in between, and may raise."""
    start = time.perf_counter()
    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(_ask, client, prompt, count) for prompt in prompts]
        try:
            answered = [result(future, poll) for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    seconds = time.perf_counter() - start
    tokens = sum(each.tokens for each in answered)
    counted = all(each.counted for each in answered)
    return Load(statistics.median(each.first for each in answered), tokens / seconds, tokens, seconds, counted)


def result(future: Future[T], poll: Callable[[], None]) -> T:
    """Return the result of a future; `poll` is called while it is awaited."""
    while True:
        poll()
        try:
            return future.result(timeout=_POLL)
        except TimeoutError:
            if future.done():
                raise


def _ask(client: Client, prompt: str, count: int) -> Request:
    start, first, pieces, tokens = time.perf_counter(), None, 0, None
    for piece in client.stream(prompt, count):
        if piece.text:
            first = first if first is not None else time.perf_counter() - start
            pieces += 1
        tokens = piece.tokens if piece.tokens is not None else tokens
    took = time.perf_counter() - start
    return Request(took if first is None else first, pieces if tokens is None else tokens, tokens is not None)

"""What `evaluate.served` asks of a running server, and compares with the checkpoint's own answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from runner.contracts.context import ForeignContext, Result
from runner.data.tokenizer import Tokenizer
from runner.errors import StepFailed
from runner.runtime.protocol import Ids
from runner.runtime.serving import agreement, load
from runner.runtime.serving.client import Client, Refused, Unreachable
from runner.runtime.serving.commands import Server
from runner.runtime.serving.process import ServerProcess
from runner.runtime.text import Text
from runner.runtime.transformers import Reference
from runner.steps.perplexities import perplexity

_STRIDE = 7  # tokens between two prompts of a text that has fewer windows than there are requests
T = TypeVar("T")


@dataclass(frozen=True)
class Expected:
    """The checkpoint's own continuations, with the tokenizer that made the prompts."""

    continuations: tuple[agreement.Continuation, ...]
    tokenizer: Tokenizer
    ends: frozenset[int]


def expected(ctx: ForeignContext, ids: Ids) -> Expected:
    """Return the greedy continuations by the checkpoint in float32, which is out of memory again afterwards."""
    params = ctx.params
    folder = ctx.inputs["checkpoint" if _serves_reference(ctx) else "against"].path
    tokenizer, ends = Tokenizer(folder), frozenset(Text(folder).ends())
    prompts = ids[: params["prompts"], : params["prompt_tokens"]].tolist()
    reference, found = Reference(folder, ctx.device), []
    try:
        for done, prompt in enumerate(prompts, 1):
            ctx.safe_point()
            text = tokenizer.decode(prompt)
            found.append(agreement.continuation(reference, tokenizer, text, params["new_tokens"], ends))
            ctx.emit("progress", phase="the checkpoint's tokens", done=done, total=len(prompts), unit="prompts")
    finally:
        reference.close()
    return Expected(tuple(found), tokenizer, ends)


def _serves_reference(ctx: ForeignContext) -> bool:
    """Whether what is served is the checkpoint to compare with: no engine, and no other one is named."""
    from runner.runtime import open

    return ctx.params["against"] == "source" and open.engine(ctx.inputs["checkpoint"].path) is None


@contextmanager
def _required() -> Iterator[None]:
    """Raise StepFailed where the server refuses a request that every server has to answer."""
    try:
        yield
    except Refused as error:
        message = f"the server refuses a completion: {error}"
        raise StepFailed(message, "the log of the step has the server's own words") from None


class Measurements:
    """Asks a server. Requests run in threads, so that a stop request and the server's end are noticed meanwhile."""

    def __init__(self, ctx: ForeignContext, process: ServerProcess, client: Client, server: Server) -> None:
        self._ctx, self._process, self._client, self._server = ctx, process, client, server

    def all(self, ids: Ids, wanted: Expected) -> Result:
        """Measure agreement, perplexity and speed, in this order: the first request is never one that is timed."""
        agreed, differences = self._agreement(wanted)
        quality, why = self._perplexity(ids[: self._ctx.params["windows"]])
        speed, counted = self._speed(ids, wanted.tokenizer)
        memory = {"memory": self._process.memory} if self._process.memory else {}
        details = {"differences": differences, "tokens_counted_by": "the server" if counted else "pieces of streams"}
        return Result({**agreed, **quality, **speed, **memory}, {**details, **why})

    def _agreement(self, wanted: Expected) -> tuple[dict[str, float], list[dict[str, Any]]]:
        count, tie = self._ctx.params["new_tokens"], self._ctx.params["tie"]
        found: list[agreement.Comparison] = []
        for done, ours in enumerate(wanted.continuations, 1):
            with _required():
                answer = self._asked(self._client.complete, ours.prompt, count)
            found.append(agreement.compare(ours, answer, wanted.tokenizer, wanted.ends))
            self._emit("agreement", done, len(wanted.continuations), "prompts")
        alike = [each.equal is None and each.same_prompt is not False for each in found]
        tied = [each.gap <= tie and each.same_prompt is not False for each in found]
        told = [each.same_prompt for each in found if each.same_prompt is not None]
        metrics = {
            "greedy_agreement": sum(alike) / len(found),
            "agreement_but_ties": sum(tied) / len(found),
            "first_difference": min((each.equal for each in found if each.equal is not None), default=count),
            "largest_gap": max(each.gap for each in found),
            "prompts": len(found),
            **({"tokenized_alike": sum(told) / len(told)} if told else {}),
        }
        differences = [
            {"prompt": place, "equal_tokens": each.equal, "gap": round(each.gap, 4), "tie": each.gap <= tie}
            for place, each in enumerate(found) if each.equal is not None
        ]  # fmt: skip
        return metrics, differences

    def _perplexity(self, windows: Ids) -> tuple[dict[str, float], dict[str, str]]:
        """Return perplexity as evaluate.perplexity counts it, or why the server gives none."""
        if len(windows) == 0:
            return {}, {}
        if self._server.scores is None:
            return {}, {"no_perplexity": f"{self._ctx.params['server']} gives no log-probabilities"}
        total, tokens = 0.0, 0
        for done, window in enumerate(windows.tolist(), 1):
            try:
                scores = self._asked(self._client.log_probabilities, window)
            except Refused as error:
                return {}, {"no_perplexity": str(error)}
            total -= math.fsum(scores)
            tokens += len(scores)
            self._emit("perplexity", done, len(windows), "windows")
        return {"perplexity": perplexity(total / tokens), "tokens": tokens}, {}

    def _speed(self, ids: Ids, tokenizer: Tokenizer) -> tuple[dict[str, float], bool]:
        params, metrics, counted = self._ctx.params, dict[str, float](), True
        used = 1  # the first begins as the first prompt of the agreement
        for done, parallel in enumerate(params["concurrency"], 1):
            number = max(params["requests"], parallel)
            prompts = [self._prompt(ids, used + place, tokenizer) for place in range(number)]
            used += number
            ask = partial(load.measure, self._client, prompts, params["new_tokens"], parallel, self._poll)
            with _required():
                found = self._reached(ask)
            metrics[f"time_to_first_token/{parallel}"] = found.first
            metrics[f"tokens_per_second/{parallel}"] = found.rate
            counted = counted and found.counted
            self._emit("speed", done, len(params["concurrency"]), "measurements")
        return metrics, counted

    def _prompt(self, ids: Ids, place: int, tokenizer: Tokenizer) -> str:
        """Return a text that no earlier request began with, where the data has so many: servers cache beginnings."""
        stream, length = ids.reshape(-1), self._ctx.params["prompt_tokens"]
        start = place * _STRIDE % max(1, stream.size - length + 1)
        return tokenizer.decode(stream[start : start + length].tolist())

    def _asked(self, ask: Callable[..., T], *args: Any) -> T:
        """Return the answer to one request. Raises Refused."""
        with ThreadPoolExecutor(1) as pool:
            return self._reached(lambda: load.result(pool.submit(ask, *args), self._poll))

    def _reached(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except Unreachable as error:
            self._process.settle()
            raise StepFailed(f"the server does not answer any more: {error}", "see the log of the step") from None

    def _poll(self) -> None:
        """Raise Interrupted or StepFailed, once the server is gone and with it the requests that wait for it."""
        try:
            self._ctx.safe_point()
            self._process.check()
        except BaseException:
            self._process.stop()
            raise

    def _emit(self, phase: str, done: int, total: int, unit: str) -> None:
        self._ctx.emit("progress", phase=phase, done=done, total=total, unit=unit)

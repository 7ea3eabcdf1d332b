"""Agreement of a server's greedy continuations with those of a checkpoint that this process runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runner.data.tokenizer import Tokenizer
from runner.runtime.protocol import Ids, Logits, Runtime
from runner.runtime.serving.client import Answer

_TOP = 64
_BROKEN = "\ufffd"  # at the end of a text: a character whose further bytes are in later tokens


@dataclass(frozen=True)
class Top:
    """The largest logits of a position, in falling order, and their tokens."""

    tokens: NDArray[np.int64]
    logits: NDArray[np.float32]

    def gap(self, token: int | None) -> float:
        """Return how far the logit of `token` is below the largest; at least so far where it is none of these."""
        places = np.flatnonzero(self.tokens == token)
        return float(self.logits[0] - self.logits[places[0] if len(places) else -1])


@dataclass(frozen=True)
class Continuation:
    """What the checkpoint makes of a prompt: greedy tokens up to one that ends a text, and the logits at each."""

    prompt: str
    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    top: tuple[Top, ...]
    ended: bool  # whether `tokens` would be followed by one that ends the text: that of the last of `top`


@dataclass(frozen=True)
class Comparison:
    """`equal` tokens before the first that differs, None where all agree; the gap of the logits there.

    `same_prompt` is whether the server's tokenizer made the same number of tokens of the prompt; None where the server
    does not say.
    """

    equal: int | None
    gap: float
    same_prompt: bool | None


def continuation(
    runtime: Runtime, tokenizer: Tokenizer, prompt: str, count: int, ends: Collection[int]
) -> Continuation:
    """Return the greedy continuation of a text by a runtime."""
    ids = tokenizer.encode([prompt], special=True)[0]
    given: Ids = np.array([ids], np.int64)
    top = [_top(runtime.prefill(given, last=True)[0, -1])]
    tokens: list[int] = []
    while int(top[-1].tokens[0]) not in ends:
        tokens.append(int(top[-1].tokens[0]))
        if len(tokens) == count:
            return Continuation(prompt, tuple(ids), tuple(tokens), tuple(top), False)
        top.append(_top(runtime.decode(np.array([[tokens[-1]]], np.int64))[0, -1]))
    return Continuation(prompt, tuple(ids), tuple(tokens), tuple(top), True)


def compare(ours: Continuation, answer: Answer, tokenizer: Tokenizer, ends: Collection[int]) -> Comparison:
    """Compare a server's answer, by the ids of its tokens where it gives them, else by its text."""
    same = None if answer.prompt_tokens is None else answer.prompt_tokens == len(ours.ids)
    if answer.ids is not None:
        place, token = _by_ids(ours, answer.ids, ends)
    else:
        place, token = _by_text(ours, answer.text, tokenizer)
    if place is None:
        return Comparison(None, 0.0, same)
    tokens = {token} if token is not None else ends
    return Comparison(
        place, min((ours.top[place].gap(each) for each in tokens), default=ours.top[place].gap(None)), same
    )


def _by_ids(ours: Continuation, ids: Sequence[int], ends: Collection[int]) -> tuple[int | None, int | None]:
    """Return the place of the first difference and the server's token there, None where it ended the text."""
    for place, token in enumerate(ours.tokens):
        if place >= len(ids):
            return place, None
        if ids[place] != token:
            return place, ids[place]
    if ours.ended and len(ids) > len(ours.tokens) and ids[len(ours.tokens)] not in ends:
        return len(ours.tokens), ids[len(ours.tokens)]
    return None, None


def _by_text(ours: Continuation, text: str, tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """Return the same by the longest beginning of our tokens whose text begins the server's; -1 for an unlikely token.

    Servers decode a continuation with its prompt or by itself, which many decoders begin without a blank.
    """
    before = len(tokenizer.decode(list(ours.ids)))
    found = [
        _difference(ours, text.rstrip(_BROKEN), shown)
        for shown in (lambda tokens: tokenizer.decode([*ours.ids, *tokens])[before:], tokenizer.decode)
    ]
    return max(found, key=lambda each: len(ours.tokens) + 1 if each[0] is None else each[0])


def _difference(ours: Continuation, text: str, shown: Callable[[list[int]], str]) -> tuple[int | None, int | None]:
    def begins(tokens: Sequence[int]) -> bool:
        return text.startswith(shown(list(tokens)).rstrip(_BROKEN))

    if begins(ours.tokens) and (not ours.ended or text == shown(list(ours.tokens)).rstrip(_BROKEN)):
        return None, None
    equal = next((count for count in range(len(ours.tokens), 0, -1) if begins(ours.tokens[:count])), 0)
    fitting = [int(token) for token in ours.top[equal].tokens[1:] if begins([*ours.tokens[:equal], int(token)])]
    longest = max(fitting, key=lambda token: len(shown([*ours.tokens[:equal], token])), default=-1)
    stopped = text == shown(list(ours.tokens[:equal])).rstrip(_BROKEN)
    return equal, None if stopped else longest


def _top(logits: Logits) -> Top:
    order = np.argsort(-logits, kind="stable")[:_TOP]
    return Top(order.astype(np.int64), logits[order].astype(np.float32))

"""Where two greedy continuations part, by ids and by text, and how far the logits were from each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.data.tokenizer import Tokenizer
from runner.runtime.serving.agreement import Comparison, Continuation, Top, compare, continuation
from runner.runtime.serving.client import Answer
from runner.runtime.transformers import Reference
from tests import tiny

A = 3  # the token "a"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny.byte_level(tiny.save(tmp_path_factory.mktemp("model"), vocab_size=29)))


def made(text: str, ended: bool = False) -> Continuation:
    """A continuation of "a": at each place the next letter is second, half a logit below, and "z" is fourth."""
    tokens = tuple(A + ord(letter) - ord("a") for letter in text)
    likeliest = [*tokens, 2] if ended else [*tokens]
    top = tuple(
        Top(np.array([token, token + 1, 2 if token != 2 else 5, A + 25]), np.array([9, 8.5, 8, 1], np.float32))
        for token in likeliest
    )
    return Continuation("a", (A,), tokens, top, ended)


def ids(text: str, *more: int) -> Answer:
    return Answer(text, tuple([A + ord(letter) - ord("a") for letter in text] + list(more)), 1)


@pytest.mark.parametrize(
    ("answer", "equal", "gap"),
    [
        (ids("bcd"), None, 0.0),
        (ids("bdd"), 1, 0.5),  # "d" instead of "c" was second
        (ids("bcz"), 2, 8.0),
        (ids("bcq"), 2, 8.0),  # at least: it is none of the likeliest
        (ids("bc"), 2, 1.0),  # it ended the text
        (ids("b", 2), 1, 1.0),
    ],
)
def test_continuations_by_ids(tokenizer: Tokenizer, answer: Answer, equal: int | None, gap: float) -> None:
    assert compare(made("bcd"), answer, tokenizer, {2}) == Comparison(equal, gap, True)
    by_text = Answer(tokenizer.decode(list(answer.ids or ())), None, None)
    assert compare(made("bcd"), by_text, tokenizer, {2}) == Comparison(equal, gap, None)


def test_a_text_that_ends(tokenizer: Tokenizer) -> None:
    ours = made("bcd", ended=True)
    for answer in (ids("bcd"), ids("bcd", 2), ids("bcd", 2, 5, 6), Answer("bcd", None, None)):
        assert compare(ours, answer, tokenizer, {2}).equal is None
    assert compare(ours, ids("bcde"), tokenizer, {2}) == Comparison(3, 8.0, True)
    assert compare(ours, Answer("bcde", None, None), tokenizer, {2}).equal == 3
    assert compare(ours, ids("bc", 2), tokenizer, {2}) == Comparison(2, 1.0, True)


def test_a_prompt_that_the_server_cuts_otherwise(tokenizer: Tokenizer) -> None:
    assert compare(made("b"), Answer("b", None, 2), tokenizer, {2}).same_prompt is False


def test_a_character_in_two_tokens_may_be_unfinished(tokenizer: Tokenizer) -> None:
    assert compare(made("bc"), Answer("bc\ufffd", None, None), tokenizer, {2}).equal is None


def test_the_checkpoint_continues_as_transformers_does(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny.byte_level(tiny.save(tmp_path, vocab_size=29))
    tokenizer = Tokenizer(folder)
    found = continuation(Reference(folder), tokenizer, "hello", 12, {2})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    given = torch.tensor([tokenizer.encode(["hello"], special=True)[0]])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    expected = model.generate(given, attention_mask=torch.ones_like(given), **options)[0, given.shape[1] :].tolist()
    assert list(found.tokens) == [token for token in expected if token != 2]
    assert found.ended == (2 in expected)
    logits = model(given).logits[0, -1].detach()
    assert found.top[0].gap(int(logits.argmin())) == pytest.approx(float(logits.max() - logits.min()), rel=1e-4)

"""Decoding: greedy, streamed, sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from runner.errors import StepFailed
from runner.runtime.greedy import greedy, sampler, stream
from runner.runtime.protocol import Ids, Logits
from runner.runtime.transformers import Transformers
from tests import tiny


class Counting:
    """Says that the next token is the last one plus one; counts its calls."""

    name, vocabulary, context, max_batch = "counting", 10, 6, None

    def __init__(self) -> None:
        self.calls: list[int] = []

    def prefill(self, ids: Ids, *, last: bool = False) -> Logits:
        self.calls.append(ids.shape[1])
        return self._next(ids[:, -1:] if last else ids)

    def decode(self, ids: Ids) -> Logits:
        self.calls.append(1)
        return self._next(ids)

    def close(self) -> None: ...

    def _next(self, ids: Ids) -> Logits:
        return np.eye(10, dtype=np.float32)[(ids + 1) % 10]


def test_greedy_is_what_generate_of_transformers_gives(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny.save(tmp_path)
    ids = tiny.tokens(3, 5)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, min_new_tokens=20, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )[:, 5:]  # fmt: skip
    assert greedy(Transformers(folder), ids.numpy(), 20) == wanted.tolist()


def test_ends() -> None:
    ids = np.array([[1], [3]])
    assert greedy(Counting(), ids, 3) == [[2, 3, 4], [4, 5, 6]]
    runtime = Counting()
    assert greedy(runtime, ids, 9, {4}) == [[2, 3, 4], [4]]
    assert runtime.calls == [1, 1, 1]
    assert greedy(Counting(), ids, 0) == [[], []]


def test_a_stream_stops_at_the_end_token_and_at_the_context() -> None:
    ids = np.array([[0, 1]])
    assert list(stream(Counting(), ids, 9, {4})) == [2, 3]
    assert list(stream(Counting(), ids, 9)) == [2, 3, 4, 5]  # 2 + 4 tokens are the context
    assert list(stream(Counting(), ids, 2)) == [2, 3]


def test_logits_that_are_no_numbers_are_told() -> None:
    class Broken(Counting):
        def decode(self, ids: Ids) -> Logits:
            return np.full((1, 1, 10), np.nan, np.float32)

    given = stream(Broken(), np.array([[0, 1]]), 3)
    assert next(given) == 2
    with pytest.raises(StepFailed) as caught:
        next(given)
    assert caught.value.message == (
        "the model's logits are not numbers: its weights are damaged, or its values overflow half precision"
    )


def test_sampling_follows_the_distribution() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3]] * 20000, np.float32))
    shares = np.bincount(sampler(1.0, 1.0, 0)(logits), minlength=3) / 20000
    np.testing.assert_allclose(shares, [0.1, 0.6, 0.3], atol=0.015)
    cooler = np.bincount(sampler(0.5, 1.0, 0)(logits), minlength=3) / 20000
    np.testing.assert_allclose(cooler, np.array([0.01, 0.36, 0.09]) / 0.46, atol=0.015)


def test_top_p_keeps_the_likeliest_that_reach_it() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3]] * 2000, np.float32))
    assert set(sampler(1.0, 0.59, 0)(logits).tolist()) == {1}
    assert set(sampler(1.0, 0.61, 0)(logits).tolist()) == {1, 2}
    assert sampler(0.0, 1.0, 0)(logits[:2]).tolist() == [1, 1]


def test_a_seed_gives_the_same_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 96)).astype(np.float32)
    first, again, other = (sampler(1.0, 0.9, seed)(logits).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other

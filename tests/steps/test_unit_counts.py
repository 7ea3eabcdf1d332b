"""How many units stay, and what is refused, in whole messages."""

from __future__ import annotations

from typing import Any

import pytest

from runner.model.architecture.units import Widths
from runner.steps.unit_counts import wanted

MODEL = Widths(feed_forward=768, heads=12, key_value_heads=4, hidden_size=256, head_size=64)


def counts(**params: Any) -> Widths:
    after, found = wanted({"multiple_of": 64, **params}, MODEL)
    assert found == []
    return after


@pytest.mark.parametrize(
    ("params", "changed"),
    [
        ({"feed_forward": {"drop": 0.25}}, {"feed_forward": 576}),
        ({"feed_forward": {"keep": 640}}, {"feed_forward": 640}),
        ({"feed_forward": {"drop": 0.01}}, {"feed_forward": 704}),  # the nearest multiple that cuts something
        ({"feed_forward": {"keep": 0.01}}, {"feed_forward": 64}),  # and the nearest that leaves something
        ({"feed_forward": {"keep": 0.3}, "multiple_of": 1}, {"feed_forward": 230}),
        ({"hidden_size": {"drop": 64}}, {"hidden_size": 192}),
        ({"heads": {"drop": 0.25}}, {"heads": 8}),  # nine would not share out over four groups
        ({"heads": {"keep": 4}}, {"heads": 4}),
        ({"key_value_heads": {"drop": 1}}, {"heads": 9, "key_value_heads": 3}),
        ({"key_value_heads": {"drop": 0.5}, "heads": {"keep": 4}}, {"heads": 4, "key_value_heads": 2}),
        ({"key_value_heads": {"keep": 2}, "heads": {"keep": 6}}, {"heads": 6, "key_value_heads": 2}),
    ],
)
def test_counts(params: dict[str, Any], changed: dict[str, int]) -> None:
    after = counts(**params)
    assert after == Widths(**{**vars(MODEL), **changed})


def refused(model: Widths = MODEL, **params: Any) -> tuple[str, str, str, tuple[str | int, ...]]:
    [found] = wanted({"multiple_of": 64, **params}, model)[1]
    return found.code, found.message, found.help or "", tuple(found.path or ())


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"feed_forward": {"keep": 800}},
         ("R802", "`feed_forward` keeps 800 of 768 neurons", "keep 1 to 767", ("feed_forward", "keep"))),
        ({"feed_forward": {"keep": 768}},
         ("R802", "`feed_forward` keeps 768 of 768 neurons", "keep 1 to 767", ("feed_forward", "keep"))),
        ({"hidden_size": {"drop": 256}},
         ("R802", "`hidden_size` leaves out 256 of 256 channels", "drop 1 to 255", ("hidden_size", "drop"))),
        ({"heads": {"drop": 12}}, ("R802", "`heads` leaves out 12 of 12 heads", "drop 1 to 11", ("heads", "drop"))),
        ({"key_value_heads": {"keep": 5}},
         ("R802", "`key_value_heads` keeps 5 of 4 heads of keys and values", "keep 1 to 3",
          ("key_value_heads", "keep"))),
        ({"heads": {"keep": 9}},
         ("R803", "`heads` leaves 9 of 12 heads in 4 groups; each group must keep the same number", "keep 4 or 8",
          ("heads",))),
        ({"heads": {"keep": 8}, "key_value_heads": {"keep": 3}},
         ("R803", "`heads` leaves 8 of 12 heads in 4 groups, of which 3 stay; each group must keep the same number",
          "keep 3 or 6 or 9", ("heads",))),
        ({"feed_forward": {"keep": 600}},
         ("R804", "`feed_forward` leaves 600 of 768 neurons, which `multiple_of` 64 does not divide",
          "keep 576 or 640, or lower `multiple_of`", ("feed_forward", "keep"))),
        ({"hidden_size": {"drop": 10}},
         ("R804", "`hidden_size` leaves 246 of 256 channels, which `multiple_of` 64 does not divide",
          "drop 64, or lower `multiple_of`", ("hidden_size", "drop"))),
        ({"hidden_size": {"drop": 0.1}, "multiple_of": 256},
         ("R804", "`multiple_of` 256 leaves nothing to cut of 256 channels", "lower `multiple_of`", ("multiple_of",))),
    ],
)  # fmt: skip
def test_what_is_refused(params: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert refused(**params) == expected


def test_groups_of_one_head() -> None:
    own = Widths(feed_forward=64, heads=4, key_value_heads=4, hidden_size=32, head_size=8)
    assert wanted({"multiple_of": 8, "heads": {"drop": 0.25}}, own)[0].key_value_heads == 3
    assert refused(own, heads={"keep": 2}, key_value_heads={"keep": 2}) == (
        "R803", "`heads` and `key_value_heads` are both given of a model whose heads share no keys and values",
        "leave one of them out", ("key_value_heads",),
    )  # fmt: skip
    single = Widths(feed_forward=64, heads=4, key_value_heads=1, hidden_size=32, head_size=8)
    assert refused(single, key_value_heads={"drop": 0.5}) == (
        "R802", "the model has one of its heads of keys and values", "leave it out", ("key_value_heads",),
    )  # fmt: skip


LLAMA = Widths(feed_forward=768, heads=12, key_value_heads=4, hidden_size=192, head_size=16, divided=True)


def test_heads_that_must_divide_the_hidden_size() -> None:
    """LlamaConfig refuses others, though each head says how many channels it has."""
    strict = "transformers refuses such a configuration of this type"
    assert wanted({"multiple_of": 16, "heads": {"drop": 0.3}}, LLAMA)[0].heads == 8
    assert wanted({"multiple_of": 16, "key_value_heads": {"drop": 0.3}}, LLAMA)[0].heads == 6  # 9 is nearer
    both = wanted({"multiple_of": 16, "heads": {"keep": 8}, "hidden_size": {"keep": 0.9}}, LLAMA)
    assert (both[0].hidden_size, both[1]) == (176, [])
    own = wanted({"multiple_of": 16, "hidden_size": {"keep": 0.9}}, LLAMA)[0]
    assert own.hidden_size == 144  # the largest multiple of 16 and of 12 that cuts something
    assert refused(LLAMA, key_value_heads={"keep": 3}) == (
        "R803", f"`key_value_heads` leaves 9 heads, which do not divide 192 channels; {strict}", "keep 1 or 2",
        ("key_value_heads",),
    )  # fmt: skip
    assert refused(LLAMA, hidden_size={"keep": 160}, multiple_of=16) == (
        "R804", f"`hidden_size` leaves 160 channels, which 12 heads do not divide; {strict}", "keep a multiple of 48",
        ("hidden_size",),
    )  # fmt: skip
    assert refused(LLAMA, hidden_size={"drop": 0.1}, multiple_of=64) == (
        "R804", "`multiple_of` 64 and the number of heads leave nothing to cut of 192 channels", "lower `multiple_of`",
        ("multiple_of",),
    )  # fmt: skip
    odd = Widths(feed_forward=64, heads=10, key_value_heads=2, hidden_size=40, head_size=4, divided=True)
    assert refused(odd, heads={"keep": 6}) == (
        "R803", f"`heads` leaves 6 heads, which do not divide 40 channels; {strict}", "keep 2 or 4 or 8", ("heads",),
    )  # fmt: skip

"""The trials that are planned to forecast a search, or to lock what it names."""

from __future__ import annotations

from dataclasses import replace

from runner.recipe.compose import spaces
from runner.recipe.search_types import Dimension
from runner.search import forecast
from tests.search.spaces import DEFAULTS, search


def test_every_choice_is_locked_and_every_point_is_in_the_space() -> None:
    found = replace(search(), space=(*search().space, Dimension("model", tuple("abcdefghijklmnop"))))
    points = forecast.covering(found, {**DEFAULTS, "model": "z"})
    assert {point["model"] for point in points} >= set("abcdefghijklmnop")
    assert {point["method"] for point in points} == {"rtn", "gptq"}
    for point in points:
        active = {one.name for one in found.space if spaces.is_active(one, {**DEFAULTS, **point})}
        assert set(point) == active
    assert points == forecast.covering(found, {**DEFAULTS, "model": "z"})

"""The Pareto front and the winner, against brute force over all trials."""

from __future__ import annotations

import random
from dataclasses import replace

from runner.recipe.search_types import MAXIMIZE, Objective
from runner.search import front
from runner.search.trial import MET, MISSED, Trial
from tests.search.spaces import search


def trials(draw: random.Random, count: int) -> list[Trial]:
    points = [(float(draw.randint(0, 9)), float(draw.randint(0, 9)), 1.0) for _ in range(count)]
    states = [MET if draw.random() < 0.8 else MISSED for _ in range(count)]
    return [Trial(n, {"bits": n}, states[n - 1], points[n - 1]) for n in range(1, count + 1)]


def test_the_front_is_that_of_brute_force() -> None:
    draw = random.Random(0)
    found = search()
    for _ in range(100):
        some = trials(draw, 20)
        points = {t.number: t.objectives(found) or () for t in some if t.state == MET}
        wanted = set()
        for point in points.values():
            if not any(o[0] <= point[0] and o[1] <= point[1] and o != point for o in points.values()):
                wanted.add(min(number for number, other in points.items() if other == point))
        assert {trial.number for trial in front.front(found, some)} == wanted
        winner = front.winner(found, some)
        assert (winner is None) == (not wanted)
        assert winner is None or winner.number in wanted


def test_the_winner_of_one_objective_is_the_best_and_the_first_of_equals() -> None:
    found = search(two=False)
    some = [Trial(n, {}, MET, (value, 1.0)) for n, value in ((1, 3.0), (2, 2.0), (3, 2.0))]
    assert front.winner(found, some) == some[1]
    turned = replace(found, objectives=(Objective("quality", "accuracy", MAXIMIZE),))
    assert front.winner(turned, some) == some[0]
    assert front.winner(found, [replace(some[0], state=MISSED)]) is None


def test_the_winner_of_two_is_nearest_to_the_best_of_both() -> None:
    found = search()
    points = ((10.0, 9.0), (11.0, 2.0), (20.0, 1.0), (30.0, 30.0))
    some = [Trial(n, {}, MET, (*point, point[1])) for n, point in enumerate(points, 1)]
    assert [trial.number for trial in front.front(found, some)] == [1, 2, 3]
    assert front.winner(found, some) == some[1]

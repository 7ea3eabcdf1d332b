"""The page of a search: its Pareto front as a plot, its trials as a table. No scripts, as in the report of a job."""

from __future__ import annotations

from runner.recipe.search_types import MAXIMIZE, Measure, describe
from runner.report import search as report
from runner.report.html import page, plots
from runner.report.html.elements import data_table, section, sentence, state_mark
from runner.report.html.markup import Markup, Part, tag
from runner.report.html.plots import Mark
from runner.report.html.scatter import Axis, scatter
from runner.search import front
from runner.search.archive import Archive
from runner.search.trial import FAILED, MET, MISSED, REFUSED, Trial, figure

_LEVELS = {MET: "good", MISSED: "warn", REFUSED: "idle", FAILED: "bad"}


def html(state: Archive) -> str:
    """Return the page."""
    head = tag(
        "header",
        tag("p", "Report of a search", class_="eyebrow"),
        tag("h1", state.recipe),
        tag("p", sentence(report.heading(state)), class_="facts"),
        [tag("p", sentence(text)) for text in report.sentences(state)],
    )
    body = tag("body", tag("main", head, _plot(state), _trials(state)))
    return "<!doctype html>\n" + tag("html", page.meta(f"{state.recipe}: search"), body, lang="en") + "\n"


def _plot(state: Archive) -> Markup | None:
    """Plot the two objectives of every trial that measured them; with one, the trials in order."""
    search = state.search
    measured = {trial.number: point for trial in state.trials if (point := trial.objectives(search)) is not None}
    if not measured:
        return None
    best, winner = front.front(search, state.trials), front.winner(search, state.trials)
    two = len(search.objectives) > 1

    def mark(trial: Trial) -> Mark:
        point = measured[trial.number]
        x = point[1] if two else float(trial.number)
        return Mark(x, point[0], f"trial {trial.number}: {describe(trial.values)} ({trial.state})")

    kept = {trial.number for trial in best}
    others = [mark(trial) for trial in state.trials if trial.number in measured and trial.number not in kept]
    x = _axis(search.objectives[1]) if two else Axis("trial", lambda value: f"{value:g}")
    y = _axis(search.objectives[0])
    ways = [f"{one.name}: {'higher' if one.direction == MAXIMIZE else 'lower'} is better" for one in search.objectives]
    text = f"{'; '.join(ways)}. Large dots are on the front, and the ring is the best trial."
    drawn = plots.both(
        lambda width: scatter(
            others, [mark(trial) for trial in best], mark(winner) if winner is not None else None, width, x, y
        ),
        f"Points. {text}",
    )
    return section("Pareto front" if two else "Trials in order", "front", tag("p", sentence(text)), drawn)


def _axis(measure: Measure) -> Axis:
    return Axis(measure.name, lambda value: figure(measure, value))


def _trials(state: Archive) -> Markup:
    search = state.search
    measures = report.measures(search)
    rows: list[tuple[Part, ...]] = [
        (
            str(trial.number),
            tag("span", describe(trial.values), tag("small", f"job {trial.job}") if trial.job else None, class_="step"),
            *(figure(measure, value) for measure, value in report.measured(search, trial)),
            state_mark(trial.state, _LEVELS[trial.state]),
            sentence(trial.reason),
        )
        for trial in state.trials
    ]
    head = ("trial", "chosen", *(measure.name for measure in measures), "verdict", "why")
    return section("Trials", "trials", data_table("Every trial in order", head, rows, range(2, 2 + len(measures))))

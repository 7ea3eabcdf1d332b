"""A search for terminals and as JSON: its trials, its Pareto front, its winner."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from runner.progress import units
from runner.recipe.search_types import Measure, Search, describe
from runner.report.table import Cell, table
from runner.search import archive, front
from runner.search.archive import Archive
from runner.search.trial import FAILED, MET, MISSED, REFUSED, Trial, figure

_VERBS = {MISSED: "missed a limit", REFUSED: "was refused", FAILED: "failed", MET: ""}
_STYLES = {MET: "green", REFUSED: "yellow", FAILED: "bold red"}


def lines(state: Archive, width: int) -> list[Text]:
    """Return the table of trials, the front and the winner."""
    search = state.search
    best = {trial.number for trial in front.front(search, state.trials)}
    names = [one.name for one in search.space]
    head: list[Cell] = ["", "trial", *names, *_labels(search), "verdict"]
    rows: list[list[Cell]] = [head]
    for trial in state.trials:
        cells: list[Cell] = [Text("●" if trial.number in best else "", "green"), str(trial.number)]
        cells += [units.number(trial.values[name]) if name in trial.values else "–" for name in names]
        cells += [figure(measure, value) for measure, value in measured(search, trial)]
        rows.append([*cells, Text(trial.state, _STYLES.get(trial.state, "yellow"))])
    count = len(names) + len(measures(search)) + 1
    missed = [f"trial {trial.number} {_VERBS[trial.state]}: {trial.reason}" for trial in state.trials if trial.reason]
    return [
        Text(heading(state), "bold"),
        *(table(rows, width, "<" + ">" * count + "<", indent=0, head=True) if state.trials else []),
        Text(),
        *(Text(text, "dim") for text in missed),
        *([Text()] if missed else []),
        *map(Text, sentences(state)),
    ]


def after_apply(state: Archive, code: int, command: str, width: int) -> list[Text]:
    """Return what `apply` prints at the end of a search; where it was stopped, the command to continue with."""
    ended = lines(state, width)
    if state.status == archive.DONE:
        return ended
    return [*ended, Text(), Text("the trials that ended are on the disk; continue with:"), Text(f"  {command}")]


def heading(state: Archive) -> str:
    """Return `search llama-search-3f9a: 12 trials, done`."""
    stands = "not finished" if state.status == archive.RUNNING else state.status
    budget = f" of {state.search.trials}" if state.search.trials is not None else ""
    count = units.plural(len(state.trials), "trial") if not budget else f"{len(state.trials)}{budget} trials"
    return f"search {state.id}: {count}, {stands}, {units.duration(state.seconds)} of computing"


def sentences(state: Archive) -> list[str]:
    """Return sentences: how many trials ended how, the front, the winner or what came nearest to winning."""
    search, trials = state.search, state.trials
    counts = [(sum(trial.state == name for trial in trials), name) for name in (MET, MISSED, REFUSED, FAILED)]
    words = {MET: "kept every limit", MISSED: "missed one", REFUSED: "were refused", FAILED: "failed"}
    found = [", ".join(f"{count} {words[name]}" for count, name in counts if count) or "no trial has ended"]
    best = front.winner(search, trials)
    if best is None:
        near = min((t for t in trials if t.state == MISSED), key=lambda t: (t.violation, t.number), default=None)
        if near is not None:
            found.append(
                f"no trial kept every limit; nearest is trial {near.number} ({describe(near.values)}): {near.reason}"
            )
        return found
    if len(search.objectives) > 1:
        numbers = ", ".join(str(trial.number) for trial in front.front(search, trials))
        axes = " and ".join(one.name for one in search.objectives)
        found.append(f"Pareto front of {axes}: trials {numbers}")
    reached = ", ".join(f"{one.name} {figure(one, value)}" for one, value in measured(search, best))
    found.append(f"best: trial {best.number} ({describe(best.values)}): {reached}")
    if best.job is not None:
        found.append(f"its job is {best.job}; `runner search best {state.id} --as FILE` writes it as a recipe")
    return found


def measures(search: Search) -> list[Measure]:
    """Return what a search measures, each once."""
    return [Measure(*key) for key in dict.fromkeys((one.step, one.metric) for one in search.measures)]


def _labels(search: Search) -> list[str]:
    """Return the heads of the columns of measures: the metrics, with their steps where these alone are ambiguous."""
    found = measures(search)
    names = [one.name for one in search.space] + [measure.metric for measure in found]
    return [measure.metric if names.count(measure.metric) == 1 else measure.name for measure in found]


def measured(search: Search, trial: Trial) -> list[tuple[Measure, float | None]]:
    """Return each measure with the value of a trial."""
    values = {(one.step, one.metric): value for one, value in zip(search.measures, trial.measured, strict=True)}
    return [(one, values[one.step, one.metric]) for one in measures(search)]


def document(state: Archive) -> dict[str, Any]:
    """Return a search as JSON."""
    best = front.winner(state.search, state.trials)
    return {
        **archive.document(state), "seconds": round(state.seconds, 3),
        "front": [trial.number for trial in front.front(state.search, state.trials)],
        "winner": best.number if best is not None else None,
    }  # fmt: skip

"""`search`: reads the space of params, the measures and the budget of a recipe, after its schema stage.

    search:
      space:
        method: [rtn, gptq]
        bits: {low: 2, high: 8}
        dampening: {low: 0.001, high: 0.1, log: true, when: method == "gptq"}
      objectives:
        - {step: quality, metric: perplexity, direction: minimize}
      constraints:
        - {step: weights, metric: bytes, max: 5000000}
      budget: {trials: 20}

A param that `--set` gives is fixed and varies no more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from runner import wording
from runner.errors import Diagnostic
from runner.recipe import kind_types
from runner.recipe.compose import params, spaces, when
from runner.recipe.schema import step_entries
from runner.recipe.search_types import BYTES, Constraint, Dimension, Measure, Objective, Search, Value
from runner.recipe.syntax import nodes
from runner.recipe.syntax.nodes import Node
from runner.recipe.types import Path, Recipe

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BATCH = {"nsga2": 8}  # a generation
_DEFAULT_BATCH = 4
_MOST_CHECKED = 4096  # combinations of choices that `when` is tried with


def read(
    root: Node, recipe: Recipe, sets: Sequence[str], used: Collection[str]
) -> tuple[Search | None, list[Diagnostic]]:
    """Return the search of a recipe, and complaints (R821–R830) about it; None where it has no `search`.

    `root` is the tree with references replaced, which fits the schema; `recipe` is made of it, with the params' own
    values. `used` are the params that the recipe refers to.
    """
    if "search" not in root.entries:
        return None, []
    reader = _Reader(root, recipe, {given.partition("=")[0] for given in sets})
    written = nodes.plain(root.entries["search"])
    space = reader.space(written["space"], used)
    objectives = [Objective(**entry) for entry in written["objectives"]]
    constraints = [Constraint(**entry) for entry in written.get("constraints", [])]
    reader.measures("objectives", objectives)
    reader.measures("constraints", constraints)
    reader.objectives(objectives)
    for number, entry in enumerate(constraints):
        if entry.max is not None and entry.min is not None and entry.min > entry.max:
            message = f"`{entry.name}` must be at least {entry.min:g} and at most {entry.max:g}, which nothing is"
            reader.complain("R828", message, "change one of the limits", ("constraints", number))
    seconds = reader.seconds(written["budget"].get("time"))
    sampler = written.get("sampler", "tpe")
    reader.sampler(sampler, space)
    search = Search(
        space=tuple(space), objectives=tuple(objectives), constraints=tuple(constraints),
        trials=written["budget"].get("trials"), seconds=seconds, sampler=sampler,
        seed=written.get("seed", recipe.seed % 2**32), batch=written.get("batch", _BATCH.get(sampler, _DEFAULT_BATCH)),
    )  # fmt: skip
    return search, reader.complaints


class _Reader:
    """Reader of the parts of `search`, which collects complaints. `fixed` are params that `--set` gives."""

    def __init__(self, root: Node, recipe: Recipe, fixed: set[str]) -> None:
        self.root, self.recipe, self.fixed = root, recipe, fixed
        self.values: dict[str, Value] = dict(recipe.params)
        self.complaints: list[Diagnostic] = []

    def complain(self, code: str, message: str, help: str | None, path: Path) -> None:
        span = nodes.key_place(self.root, ("search", *path))
        self.complaints.append(Diagnostic(code, message, help, span))

    def space(self, written: Mapping[str, Any], used: Collection[str]) -> list[Dimension]:
        found: list[Dimension] = []
        for name, entry in written.items():
            if name not in self.values:
                message = f"`search` names `{name}`, which is no param{wording.did_you_mean(name, self.values)}"
                self.complain("R821", message, params.known(tuple(self.values)), ("space", name))
                continue
            if name not in used:
                message = f"`{name}` changes nothing: the recipe nowhere refers to `${{{name}}}`"
                help = f"write `${{{name}}}` where the value belongs, or take it out"
                self.complain("R829", message, help, ("space", name))
                continue
            dimension = self.dimension(name, entry)
            if dimension is not None and name not in self.fixed and self.condition(dimension, found, list(written)):
                found.append(dimension)
        if not found and not self.complaints:
            help = f"`--set` fixes {wording.ticked(written)}"
            self.complain("R823", "`search` leaves nothing to vary", help, ("space",))
        return found

    def dimension(self, name: str, entry: Any) -> Dimension | None:
        entry = {"choices": entry} if isinstance(entry, list) else entry
        if "choices" in entry:
            choices = self.choices(name, entry["choices"])
            return Dimension(name, choices, when=entry.get("when")) if choices else None
        return self.range(name, entry)

    def choices(self, name: str, entries: Sequence[Value]) -> tuple[Value, ...]:
        values: list[Value] = []
        for value in entries:
            fitted = _fitted(value, self.values[name])
            if fitted is None:
                self.misfit(name, value)
                return ()
            if any(type(fitted) is type(other) and fitted == other for other in values):
                message = f"`{name}` has {wording.show(value)} twice in `search`"
                self.complain("R823", message, "remove one of them", ("space", name))
                return ()
            values.append(fitted)
        return tuple(values)

    def misfit(self, name: str, value: Value) -> None:
        default = self.values[name]
        wanted = params.WANTED[type(default)]
        message = f"`{name}` must be {wanted}, as its default {wording.show(default)} is; got {wording.show(value)}"
        self.complain("R822", message, None, ("space", name))

    def range(self, name: str, entry: Mapping[str, Any]) -> Dimension | None:
        default = self.values[name]
        if isinstance(default, bool | str):
            message = f"`{name}` has a range, and its default {wording.show(default)} is no number"
            self.complain("R822", message, "list its values: `[...]`", ("space", name))
            return None
        bounds = {key: entry[key] for key in ("low", "high", "step") if key in entry}
        for value in bounds.values():
            if _fitted(value, default) is None:
                self.misfit(name, value)
                return None
        bounds = {key: _fitted(value, default) for key, value in bounds.items()}
        wrong = spaces.contradiction(**bounds, log=entry.get("log", False))
        if wrong is not None:
            self.complain("R823", f"the range of `{name}` {wrong[0]}", wrong[1], ("space", name))
            return None
        return Dimension(name, **bounds, log=entry.get("log", False), when=entry.get("when"))

    def condition(self, one: Dimension, above: Sequence[Dimension], order: Sequence[str]) -> bool:
        """Return whether the `when` of a param can be decided, and lets it vary at all."""
        if one.when is None:
            return True
        path = ("space", one.name, "when")
        try:
            when.evaluate(one.when, self.values)
        except when.WhenError as error:
            help = "write a comparison of params, such as `bits < 8`"
            self.complain("R824", f"`when: {one.when}` of `{one.name}` cannot be evaluated: {error}", help, path)
            return False
        names = set(params.NAME.findall(one.when))
        later = [name for name in order[order.index(one.name) :] if name in names and name not in self.fixed]
        if later:
            what = "the param itself" if later[0] == one.name else "which is chosen later"
            message = f"`when: {one.when}` of `{one.name}` names `{later[0]}`, {what}"
            self.complain("R824", message, f"move `{one.name}` below it, or name another param", path)
            return False
        named = [dimension for dimension in above if dimension.name in names]
        count = spaces.size(named)
        if count is None or count > _MOST_CHECKED:
            return True
        if any(when.evaluate(one.when, {**self.values, **point}) for point in spaces.points(named, self.values)):
            return True
        if names & self.fixed:
            return False  # `--set` decides it
        message = f"`{one.name}` never varies: `when: {one.when}` is false whatever the params above it are"
        self.complain("R824", message, "change the condition, or take the param out", path)
        return False

    def measures(self, part: str, measures: Sequence[Measure]) -> None:
        kinds = self.kinds()
        for number, measure in enumerate(measures):
            if measure.step not in kinds:
                near = wording.did_you_mean(measure.step, kinds)
                message = f"`search` measures `{measure.step}`, which is no step{near}"
                self.complain("R825", message, f"steps of this recipe: {wording.ticked(kinds)}", (part, number, "step"))
            for kind in kinds.get(measure.step, ()):
                self.measured(kind, measure.metric, (part, number, "metric"))

    def measured(self, kind: str, metric: str, path: Path) -> None:
        makes = kind_types.makes_checkpoint(kind) or kind_types.produces(kind) == kind_types.ENGINE
        if (metric == BYTES and makes) or kind_types.measures(kind, metric):
            return
        known = list(dict.fromkeys([*kind_types.metrics(kind), *([BYTES] if makes else [])]))
        message = f"`{kind}` does not measure `{metric}`{wording.did_you_mean(metric, known)}"
        help = f"it measures {wording.ticked(known)}" if known else "name a step that measures something"
        self.complain("R825", message, help, path)

    def kinds(self) -> dict[str, list[str]]:
        """Return id → kinds of every step, those that `when` leaves out too: these may share an id."""
        found: dict[str, list[str]] = {}
        for step in self.root.entries["steps"].items:
            id, kinds = step_entries.id_of(step), step_entries.kind_keys(step)
            if id is not None and len(kinds) == 1:
                found.setdefault(id, []).append(kinds[0])
        return found

    def objectives(self, objectives: Sequence[Objective]) -> None:
        if len({one.name for one in objectives}) < len(objectives):
            message = f"`{objectives[0].name}` is an objective twice"
            self.complain("R826", message, "remove one of them", ("objectives", 1))

    def seconds(self, text: str | None) -> float | None:
        if text is None:
            return None
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in re.findall(r"([0-9.]+)([smhd])", text))
        if seconds <= 0:
            message = f"`search.budget.time` is {wording.show(text)}: nothing can run in it"
            self.complain("R827", message, "give it some time, such as `30m`", ("budget", "time"))
        return seconds

    def sampler(self, sampler: str, space: Sequence[Dimension]) -> None:
        endless = [one.name for one in space if spaces.size([one]) is None]
        if sampler == "grid" and endless:
            message = f"the sampler `grid` tries every combination, and `{endless[0]}` has endlessly many values"
            self.complain("R830", message, "give it a `step` or `choices`, or use another sampler", ("sampler",))


def _fitted(value: Value, default: Value) -> Any:
    """Return a value in the type of a param's default; None where it does not fit."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is type(default) else None

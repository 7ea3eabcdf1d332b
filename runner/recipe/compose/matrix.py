"""`matrix`: lists of values for params, whose combinations each make a job of their own.

    matrix:
      bits: [3, 4]
      group_size: [64, 128]
      exclude: [{bits: 3, group_size: 64}]         every combination that has these values is removed
      include:
        - {bits: 8, group_size: 128}               a further combination; params that it leaves out have their defaults
        - {bits: 4, samples: 256}                  matches existing combinations: adds `samples` to them

As on GitHub: `exclude` first, then `include` in the order written. A param that `--set` gives is fixed: its list is
that one value, and entries of `include` with another one are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from runner import wording
from runner.errors import Diagnostic, RecipeError
from runner.recipe.compose import params
from runner.recipe.compose.params import Value
from runner.recipe.syntax.nodes import Node
from runner.recipe.types import Recipe

LARGEST = 256  # combinations
_LISTS = ("include", "exclude")
Combination = dict[str, Value]


@dataclass(frozen=True)
class Expansion:
    """The combinations of a matrix, with the params that each sets; `names` are all these params, in order."""

    combinations: tuple[Combination, ...]
    names: tuple[str, ...]


def describe(values: Mapping[str, Value]) -> str:
    """Return a combination as text, sorted by name as in plan.json: `bits=3, group_size=64`."""
    return ", ".join(f"{name}={params.as_text(value)}" for name, value in sorted(values.items()))


def expand(root: Node, sets: Sequence[str] = ()) -> tuple[Expansion, list[Diagnostic]]:
    """Return the combinations of a recipe, and complaints about them; without `matrix` one that sets nothing.

    A `matrix` that does not have the form of the schema sets nothing either: the schema stage complains about it.
    """
    written = root.entries.get("matrix")
    if written is None or not _well_formed(written):
        return Expansion(({},), ()), []
    reader = _Reader(root, sets)
    combinations = reader.combinations(written)
    names = tuple(dict.fromkeys(name for combination in combinations for name in combination))
    if not reader.complaints:
        combinations = reader.distinct(written, combinations, names)
    return Expansion(tuple(combinations), names), reader.complaints


class _Reader:
    """Reader of the `matrix` of a recipe, with the params that it names."""

    def __init__(self, root: Node, sets: Sequence[str]) -> None:
        self.root, self.sets = root, sets
        known, _ = params.resolve(root, ())
        self.names, self.defaults = known.names, known.values
        given = {written.partition("=")[0] for written in sets}
        values = params.resolve(root, sets)[0].values
        self.fixed = {name: values[name] for name in self.names if name in given and name in values}
        self.complaints: list[Diagnostic] = []

    def combinations(self, written: Node) -> list[Combination]:
        axes = {name: self.axis(written, name) for name in written.entries if name not in _LISTS}
        count = math.prod(len(values) for values in axes.values())
        if count > LARGEST:
            return self.too_many(written, count)
        found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
        found = self.excluded(written, found)
        if self.complaints:
            return []
        more = written.entries.get("include")
        if more is not None and len(found) + len(more.items) > LARGEST:
            return self.too_many(written, len(found) + len(more.items))
        found = self.included(written, found, set(axes))
        if not found and not self.complaints:
            help = "`exclude` takes all of them away" if "exclude" in written.entries else "give it a value"
            if self.fixed:
                help = f"`--set` fixes {wording.ticked(self.fixed)}"
            self.complain("R232", "`matrix` leaves no combination", help, written)
        return found

    def too_many(self, written: Node, count: int) -> list[Combination]:
        message = f"`matrix` has {count} combinations; {LARGEST} are the most"
        self.complain("R232", message, "shorten its lists", written)
        return []

    def axis(self, written: Node, name: str) -> list[Value]:
        if name not in self.names:
            self.unknown(written, name)
            return []
        values: list[Value] = []
        for node in written.entries[name].items:
            value = self.value(name, node)
            if value is not None and any(_same(value, other) for other in values):
                message = f"`{name}` has {wording.show(value)} twice in `matrix`"
                self.complaints.append(Diagnostic("R233", message, "remove one of them", node.span))
            elif value is not None:
                values.append(value)
        return [self.fixed[name]] if name in self.fixed else values

    def excluded(self, written: Node, found: list[Combination]) -> list[Combination]:
        for node, entry in self.entries(written, "exclude"):
            rest = [c for c in found if not _agrees(c, entry)]
            if len(rest) == len(found) and not self.fixed and not self.complaints:
                message = f"`exclude` of `matrix` matches no combination: {describe(entry)}"
                help = "its values must be in the lists of `matrix`"
                self.complaints.append(Diagnostic("R234", message, help, node.span))
            found = rest
        return found

    def included(self, written: Node, found: list[Combination], axes: set[str]) -> list[Combination]:
        alone: list[Combination] = []
        for node, entry in self.entries(written, "include"):
            if any(name in entry and not _same(entry[name], value) for name, value in self.fixed.items()):
                continue
            own = {name: value for name, value in entry.items() if name in axes}
            matching = [c for c in found if _agrees(c, own)]
            if not matching:
                alone.append(entry)
            elif len(own) == len(entry) and not self.fixed:
                self.twice(node, entry)
            for combination in matching:
                combination.update({name: value for name, value in entry.items() if name not in axes})
        return found + alone

    def entries(self, written: Node, name: str) -> list[tuple[Node, Combination]]:
        """Return the mappings of `include` or `exclude`."""
        listed = written.entries.get(name)
        read = []
        for node in listed.items if listed is not None else ():
            entry: Combination = {}
            for param, value in node.entries.items():
                if param not in self.names:
                    self.unknown(node, param)
                elif (found := self.value(param, value)) is not None:
                    entry[param] = found
            if entry:
                read.append((node, entry))
        return read

    def value(self, name: str, node: Node) -> Value | None:
        """Return a value of `matrix`, converted to the type of its param's default; None where it does not fit."""
        value, default = node.value, self.defaults.get(name)
        if default is None or not isinstance(value, bool | int | float | str):
            return None  # reported where the param is defined
        if isinstance(value, str) and isinstance(default, str):
            if any(match[0] != "$${" for match in params.TOKEN.finditer(value)):
                message = f"`{name}` refers to a param in `matrix`, whose values are written out"
                self.complaints.append(Diagnostic("R231", message, "use `$${` for the text `${`", node.span))
                return None
            return value.replace("$${", "${")
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is type(default):
            return value
        wanted = params.WANTED[type(default)]
        message = f"`{name}` must be {wanted}, as its default {wording.show(default)} is; got {wording.show(value)}"
        self.complaints.append(Diagnostic("R231", message, None, node.span))
        return None

    def distinct(self, written: Node, found: list[Combination], names: Sequence[str]) -> list[Combination]:
        """Return the combinations without duplicates; complain about those unless `--set` made them equal."""
        seen: dict[tuple[tuple[type, Value | None], ...], Combination] = {}
        for combination in found:
            values = params.resolve(self.root, self.sets, combination)[0].values
            key = tuple((type(values.get(name)), values.get(name)) for name in names)
            if key in seen and not self.fixed:
                self.twice(written, {name: values[name] for name in names if name in values})
            seen.setdefault(key, combination)
        return list(seen.values())

    def twice(self, node: Node, combination: Combination) -> None:
        message = f"`matrix` has the combination {describe(combination)} twice"
        self.complaints.append(Diagnostic("R233", message, "remove one of them", node.span))

    def unknown(self, node: Node, name: str) -> None:
        message = f"`matrix` names `{name}`, which is no param{wording.did_you_mean(name, self.names)}"
        self.complaints.append(Diagnostic("R230", message, params.known(self.names), node.keys.get(name, node.span)))

    def complain(self, code: str, message: str, help: str, written: Node) -> None:
        span = self.root.keys.get("matrix", written.span)
        self.complaints.append(Diagnostic(code, message, help, span))


def merge_complaints(failed: Sequence[tuple[Combination, Sequence[Diagnostic]]], count: int) -> list[Diagnostic]:
    """Return the complaints about combinations, each reported once.

    One that not all `count` combinations share names the first combination with it.
    """
    first: dict[Diagnostic, Combination] = {}
    times: dict[Diagnostic, int] = {}
    for combination, complaints in failed:
        for complaint in dict.fromkeys(complaints):
            first.setdefault(complaint, combination)
            times[complaint] = times.get(complaint, 0) + 1
    return [
        complaint if times[complaint] == count else replace(
            complaint, message=f"{complaint.message} (in the combination {describe(combination)})"
        )
        for complaint, combination in first.items()
    ]  # fmt: skip


def check_distinct(recipes: Sequence[Recipe]) -> None:
    """Raise RecipeError where two combinations give the same job, because nothing refers to their difference."""
    seen: dict[str, Recipe] = {}
    for recipe in recipes:
        work = {key: value for key, value in recipe.document.items() if key not in ("params", "matrix", "description")}
        other = seen.setdefault(repr(work), recipe)
        if other is recipe:
            continue
        unused = [n for n, value in recipe.matrix.items() if not _same(value, other.matrix[n])]
        message = (
            f"the combinations {describe(other.matrix)} and {describe(recipe.matrix)} come to the same job: "
            f"nothing in the recipe depends on {wording.ticked(unused)}"
        )
        raise RecipeError(
            [Diagnostic("R233", message, "refer to it with `${...}`, or take it out", recipe.span(("matrix",)))]
        )


def _well_formed(written: Node) -> bool:
    lists = [node.value for node in written.entries.values()]
    if not lists or not all(isinstance(items, tuple) and items for items in lists):
        return False
    entries = [node for name, listed in written.entries.items() if name in _LISTS for node in listed.items]
    values = [node for name, listed in written.entries.items() if name not in _LISTS for node in listed.items]
    values += [node for entry in entries for node in entry.entries.values()]
    scalars = all(isinstance(node.value, bool | int | float | str) for node in values)
    return scalars and all(entry.entries for entry in entries)


def _same(one: Value, other: Value) -> bool:
    return type(one) is type(other) and one == other


def _agrees(combination: Mapping[str, Value], entry: Mapping[str, Value]) -> bool:
    return all(name in combination and _same(combination[name], value) for name, value in entry.items())

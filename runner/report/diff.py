"""The differences between two jobs, or two recipes: recipe, lock, metrics, digests, environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.text import Text

from runner import wording
from runner.progress import units
from runner.recipe import secrets
from runner.report import findings
from runner.report.table import Cell, table

SECTIONS = ("recipe", "lock", "metrics", "digests", "environment")
_STEP_OPTIONS = frozenset({"id", "from", "when", "resources", "env"})
_OF_MACHINE = frozenset({"packages", "python", "runner"})  # keys of a lock that the environment has too


@dataclass(frozen=True)
class Side:
    """One of the two sides. `recipe` and `lock` are documents, `metrics` and `digests` by step; empty where missing."""

    name: str
    recipe: Mapping[str, Any]
    lock: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A value that differs; `a` or `b` is None where that side has none."""

    section: str
    path: str
    a: Any
    b: Any

    @property
    def change(self) -> str:
        """The change between two numbers: `+0.27, +3.3 %`; empty for other values."""
        if not (_is_number(self.a) and _is_number(self.b)):
            return ""
        gap = self.b - self.a
        sign = "+" if gap > 0 else "−"
        share = findings.percent(float(self.a), float(self.b))
        return f"{sign}{units.number(abs(gap))}" + (f", {share}" if share else "")


def differences(a: Side, b: Side) -> tuple[Difference, ...]:
    """Return every value that differs, section by section, in the order of `a`."""
    known = secrets.values(a.recipe) | secrets.values(b.recipe)
    machines = bool(a.environment and b.environment)
    pairs = (
        ("recipe", flat_recipe(a.recipe), flat_recipe(b.recipe)),
        ("lock", _lock(a.lock, machines), _lock(b.lock, machines)),
        ("metrics", dict(_flat(a.metrics)), dict(_flat(b.metrics))),
        ("digests", dict(a.digests), dict(b.digests)),
        ("environment", dict(_flat(a.environment)), dict(_flat(b.environment))),
    )
    found = []
    for section, one, other in pairs:
        if not one or not other:
            continue  # a side without a section (a recipe has no metrics) is no difference
        for path in dict.fromkeys((*one, *other)):
            x, y = one.get(path), other.get(path)
            if x != y or type(x) is not type(y):
                hidden = secrets.is_secret(path.rpartition(".")[2])
                x, y = (secrets.HIDDEN, secrets.HIDDEN) if hidden else (secrets.hide(x, known), secrets.hide(y, known))
                found.append(Difference(section, path, x, y))
    return tuple(found)


def flat_recipe(document: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a recipe to path → value; steps by their id: `steps.gptq.bits`."""
    rest = {key: value for key, value in document.items() if key != "steps"}
    found = dict(_flat(rest))
    steps = [step for step in document.get("steps") or () if isinstance(step, Mapping)]
    ids = [str(step.get("id", number)) for number, step in enumerate(steps)]
    if ids:
        found["steps"] = ", ".join(ids)
    for id, step in zip(ids, steps, strict=True):
        kind = next((key for key in step if key not in _STEP_OPTIONS), "")
        found[f"steps.{id}.kind"] = kind
        options = {key: value for key, value in step.items() if key in _STEP_OPTIONS - {"id"}}
        found |= dict(_flat({**options, **(step.get(kind) or {})}, ("steps", id)))
    return found


def _lock(document: Mapping[str, Any], machines: bool) -> dict[str, Any]:
    left_out = _OF_MACHINE if machines else frozenset[str]()
    return dict(_flat({key: value for key, value in document.items() if key not in left_out}))


def _flat(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _flat(entry, (*path, str(key)))
    elif isinstance(value, list | tuple) and value:
        for index, entry in enumerate(value):
            yield from _flat(entry, (*path, index))
    elif path:
        yield (
            wording.label(path),
            value if isinstance(value, bool | int | float | str) else None if value is None else str(value),
        )


def lines(a: Side, b: Side, found: tuple[Difference, ...], width: int) -> list[Text]:
    """Return lines for a terminal: one section after another, each value as before → after."""
    heading = Text(f"{a.name} → {b.name}", "bold")
    if not found:
        return [heading, Text("no difference")]
    result = [heading]
    for section in SECTIONS:
        rows: list[list[Cell]] = []
        for one in (one for one in found if one.section == section):
            before, after = _shown(one.a, section), _shown(one.b, section)
            if section == "metrics":
                rows.append([one.path, before, "→", after, Text(one.change, _style(one))])
            else:
                rows.append([one.path, f"{before} → {after}"])
        if rows:
            result += [Text(), Text(section, "bold"), *table(rows, width, "<><>" if section == "metrics" else "<")]
    return result


def document(a: Side, b: Side, found: tuple[Difference, ...]) -> dict[str, Any]:
    """Return the differences as JSON."""
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for one in found:
        entry = {name: value for name, value in asdict(one).items() if name != "section"}
        if one.section == "metrics" and _is_number(one.a) and _is_number(one.b):
            entry |= {"change": one.b - one.a, "ratio": one.b / one.a if one.a else None}
        sections[one.section].append(entry)
    return {"schema": 1, "a": a.name, "b": b.name, "equal": not found, **sections}


def _shown(value: Any, section: str) -> str:
    if value is None:
        return "none"
    if section == "digests":
        return str(value)[:12]
    return units.number(value) if _is_number(value) else str(value)


def _style(one: Difference) -> str:
    """Return green where a metric became better, red where it became worse, "" for other values."""
    metric = one.path.rpartition(".")[2]
    if metric in units.COUNTS or not (_is_number(one.a) and _is_number(one.b)):
        return ""
    return "green" if (one.b > one.a) == findings.higher_is_better(metric) else "red"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

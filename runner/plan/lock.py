"""The lock: what the names in a recipe referred to, so that they refer to the same elsewhere and later.

    version: 1
    runner: 0.1.0                          seed: 0
    models:   {"org/name@main": {commit}, "folder": {digest, files: {name: sha256}}}
    data:     {"demo:stdlib#calibration": {digest}, "org/texts#train": {commit}}
    parents:  {"git+https://...": {commit, digest}, "pack:acme/int4": {digest, package}}
    packages: {torch: 2.13.0}              those that influence the bytes of results
    assignments: {"gptq": {digest, bits}}  of steps with `bits: auto`, where the measurement was there

Models and data have the names that the recipe uses, so that one lock covers every combination of a matrix. Entries of
the lock that the recipe does not use have no effect and are no drift. Pure functions; lock_file reads and writes files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runner import wording
from runner.plan.types import UNPACKED, Plan, ResolvedData, ResolvedModel
from runner.recipe.origins.locate import Pins
from runner.recipe.types import DataSpec, ModelSpec, Parent

VERSION = 1
SECTIONS = ("models", "data", "parents", "packages", "environments", "assignments")
Document = Mapping[str, Any]
Entry = tuple[str, str]  # section and name; ("runner", "") and ("seed", "")

_NOUNS = {"models": "model", "data": "data", "parents": "parent", "packages": "package",
          "environments": "environment", "assignments": "assignment"}  # fmt: skip
_FILES_SHOWN = 4


@dataclass(frozen=True)
class Drift:
    """One difference from the lock; `name` is what `--upgrade` takes."""

    entry: Entry
    what: str

    @property
    def name(self) -> str:
        return self.entry[1] or self.entry[0]

    def line(self) -> str:
        """Return the difference as a line: `package torch: 2.13.0 → 2.14.0`."""
        section, name = self.entry
        return f"{_NOUNS[section]} {name}: {self.what}" if name else f"{section}: {self.what}"


def model_key(spec: ModelSpec) -> str:
    return f"{spec.source}@{spec.revision}" if spec.revision else spec.source


def data_key(spec: DataSpec) -> str:
    revision = f"@{spec.revision}" if spec.revision else ""
    return f"{spec.source}{revision}" + (f"#{spec.split}" if spec.split else "")


def document(
    plans: Iterable[Plan],
    runner: str,
    packages: Mapping[str, str],
    files: Mapping[str, Mapping[str, str]] | None = None,
    assignments: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the lock of all plans of a recipe.

    `files` has, by model key, the digests of the files of Hub models that are on this machine; `assignments` are those
    of runner.plan.assignments.
    """
    plans = list(plans)
    models = {
        model_key(ModelSpec(model.source, model.revision)): model
        for plan in plans
        for id, model in plan.given().items()
        if id != UNPACKED  # the same source as the model's own
    }
    data = {data_key(plan.recipe.data[name]): entry for plan in plans for name, entry in plan.data.items()}
    parents = {parent.name: parent for plan in plans for parent in plan.recipe.parents}
    environments = {
        plan.recipe.steps[step.index].env or step.kind: step.environment.document()
        for plan in plans
        for step in plan.steps
        if step.environment is not None
    }
    seeds = sorted({plan.recipe.seed for plan in plans})
    return {
        "version": VERSION,
        "runner": runner,
        **({"seed": seeds[0]} if len(seeds) == 1 else {}),
        "models": {key: _model(models[key], (files or {}).get(key)) for key in sorted(models)},
        "data": {key: _data(data[key]) for key in sorted(data)},
        "parents": {name: _parent(parents[name]) for name in sorted(parents)},
        "packages": dict(sorted(packages.items())),
        **({"environments": dict(sorted(environments.items()))} if environments else {}),
        **({"assignments": {name: dict(entry) for name, entry in assignments.items()}} if assignments else {}),
    }


def _model(model: ResolvedModel, files: Mapping[str, str] | None) -> dict[str, Any]:
    named = files if model.commit is not None else model.files
    facts: dict[str, Any] = {"commit": model.commit} if model.commit is not None else {"digest": model.digest}
    return {**facts, **({"files": dict(sorted(named.items()))} if named else {})}


def _data(entry: ResolvedData) -> dict[str, str]:
    return {"commit": entry.commit} if entry.commit is not None else {"digest": entry.digest}


def _parent(parent: Parent) -> dict[str, str]:
    facts = {"commit": parent.commit, "digest": parent.digest, "package": parent.package}
    return {name: value for name, value in facts.items() if value is not None}


def parent_pins(lock: Document) -> Pins:
    """Return the pins for reading the recipe."""
    parents = lock["parents"]
    commits = {name: facts["commit"] for name, facts in parents.items() if "commit" in facts}
    return Pins(commits, {name: facts["digest"] for name, facts in parents.items()})


def commits(lock: Document) -> dict[Entry, str]:
    """Return the commits of Hub models and datasets, and environments as JSON, for resolving the recipe."""
    found = {
        (section, name): facts["commit"]
        for section in ("models", "data")
        for name, facts in lock[section].items()
        if "commit" in facts
    }
    return found | {("environments", name): json.dumps(e) for name, e in lock.get("environments", {}).items()}


def flat(lock: Document) -> dict[Entry, Any]:
    """Return every entry of a lock but its version."""
    single = {(name, ""): lock[name] for name in ("runner", "seed") if name in lock}
    return single | {(section, name): entry for section in SECTIONS for name, entry in lock.get(section, {}).items()}


def nested(entries: Mapping[Entry, Any]) -> dict[str, Any]:
    """Return the lock of these entries."""
    single = {name: entries[name, ""] for name in ("runner", "seed") if (name, "") in entries}
    sections = {
        section: {name: entries[of, name] for of, name in sorted(entries) if of == section} for section in SECTIONS
    }
    for section in ("environments", "assignments"):
        if not sections[section]:
            del sections[section]  # as in the locks of recipes without any
    return {"version": VERSION, **single, **sections}


def drift(lock: Document, now: Document) -> list[Drift]:
    """Return every difference between the lock and the recipe as it resolves `now`, in the order of a lock."""
    locked = flat(lock)
    found = []
    for entry, value in flat(now).items():
        if entry not in locked:
            if entry[0] == "assignments":  # known only once something was measured
                continue
            found.append(Drift(entry, "not in the lock"))
        elif (what := _difference(locked[entry], value)) is not None:
            found.append(Drift(entry, what))
    return found


def _difference(old: Any, new: Any) -> str | None:
    """Return what changed between two entries, in words; None where nothing did."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return None if old == new else f"{old} → {new}"
    parts = [
        f"{old[key]} → {new[key]}" if key == "package" else f"{key} {_short(old[key])} → {_short(new[key])}"
        for key in ("package", "commit", "digest")
        if key in old and key in new and old[key] != new[key]
    ]
    if ("commit" in old) != ("commit" in new):
        parts.append("a commit of the Hub is now a local folder" if "commit" in old else "now on the Hub")
    files = _files(old.get("files", {}), new.get("files", {})) if "files" in old and "files" in new else []
    return ", ".join(files or parts) or None


def _files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    changes = []
    for name in sorted({*old, *new}):
        if name not in new:
            changes.append(f"{name} is gone")
        elif name not in old:
            changes.append(f"{name} is new")
        elif old[name] != new[name]:
            changes.append(f"{name} {_short(old[name])} → {_short(new[name])}")
    more = len(changes) - _FILES_SHOWN
    return [*changes[:_FILES_SHOWN], *([f"{more} more files"] if more > 0 else [])]


def _short(digest: str) -> str:
    return digest[:12]


def selected(name: str, entries: Iterable[Entry], aliases: Mapping[str, Entry]) -> set[Entry]:
    """Return the entries that `--upgrade NAME` selects.

    NAME is the name of an entry, an alias (`model`, a data entry), or a part of one name. Raises LookupError, with the
    message for the user, where it selects none, or several different ones.
    """
    known = list(entries)
    exact = {entry for entry in known if name in (entry[1] or entry[0], "/".join(entry))}
    exact |= {aliases[name]} if name in aliases else set()
    if exact:
        return exact
    part = [entry for entry in known if name in entry[1]]
    if len(part) > 1:
        raise LookupError(f"`{name}` may be {wording.ticked([entry[1] for entry in part], 'or')}")
    if not part:
        names = [*aliases, *(entry[1] or entry[0] for entry in known)]
        raise LookupError(f"the lock has no `{name}`{wording.did_you_mean(name, names)}")
    return set(part)

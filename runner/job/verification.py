"""Verify a job: compare every file of it, and of its entries in the store, with the records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.contracts.step_kind import METRICS_ONLY
from runner.job import files, provenance, records
from runner.job.directory import read_json
from runner.job.entries import difference
from runner.job.records import Record
from runner.job.store import Store
from runner.plan.keys import sha256


@dataclass(frozen=True)
class Check:
    """A check of `what`; `reason` is a clause that says what is wrong, None where nothing is.

    `present` is False for what is missing and need not exist: a step that did not run yet, an entry that left the
    store.
    """

    what: str
    reason: str | None
    present: bool = True


def verify(root: Path, id: str) -> list[Check]:
    """Return every check of a job. Changes nothing; reads every byte."""
    job = root / id
    plan, state = read_json(job / "plan.json"), read_json(job / "job.json")
    done = state.get("status") == "done"
    checks = [Check("plan.json", _plan(plan, id))]
    found: dict[str, Record] = {}
    for step in plan.get("steps", []):
        record, check = _step(job, step, done, found)
        checks.append(check)
        if record is not None:
            found[step["id"]] = record
        checks += _entry(root, step, record)
    checkpoints = [found[s["id"]] for s in plan.get("steps", []) if s["produces"] != METRICS_ONLY and s["id"] in found]
    if checkpoints and (done or (job / "output").is_dir()):
        checks.append(Check("output", _files(job / "output", checkpoints[-1])))
    return [*checks, _provenance(job, done)]


def _plan(plan: Mapping[str, Any], id: str) -> str | None:
    try:
        named = {"name": plan["recipe"], "model": plan["model"]["digest"], "steps": plan["steps"]}
        if sha256(named) != plan["key"]:
            return "its content does not have the key in it"
        wrong = [step["id"] for step in plan["steps"] if sha256(step["key_inputs"]) != step["key"]]
        if wrong:
            return f"the key of step `{wrong[0]}` is not that of its inputs"
        return None if id.endswith(plan["key"][:12]) else f"it is that of another job, {plan['recipe']}-{plan['key']}"
    except (KeyError, TypeError, ValueError):
        return "it is missing, torn or not a plan"


def _step(job: Path, step: Mapping[str, Any], done: bool, found: Mapping[str, Record]) -> tuple[Record | None, Check]:
    folder = job / "steps" / step["folder"]
    what = f"steps/{step['folder']}"
    if not folder.is_dir():
        return None, Check(what, "it is missing, and the job is done" if done else None, present=False)
    try:
        record = records.parse((folder / "record.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, Check(what, "record.json is missing")
    except (OSError, ValueError) as error:
        return None, Check(what, f"record.json {error}")
    if record.key != step["key"]:
        return None, Check(what, f"its record is that of another key, {record.key}")
    reason = difference(folder, record, thorough=True)
    for name, id in step["inputs"].items():
        made_from = record.inputs.get(name)
        if reason is None and id in found and made_from != found[id].digest:
            reason = f"it was made from a result of `{id}` with other bytes, digest {made_from}"
    return record, Check(what, reason)


def _entry(root: Path, step: Mapping[str, Any], record: Record | None) -> Iterator[Check]:
    """Check the entry in the store: it may be missing, but must not differ from the job's."""
    what = f"store/{step['key'][:12]}"
    folder = Store(root / "store").root / step["key"]
    if not folder.is_dir():
        if record is not None:
            yield Check(what, None, present=False)
        return
    try:
        entry = records.parse((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield Check(what, f"record.json {error}")
        return
    reason = difference(folder, entry, thorough=True)
    if reason is None and record is not None and entry.digest != record.digest:
        reason = f"it has the digest {entry.digest}, the job's step {record.digest}"
    yield Check(what, reason)


def _files(output: Path, record: Record) -> str | None:
    for fact in record.files:
        path = output / fact.path
        if not path.is_file():
            return f"{fact.path} is missing"
        if files.sha256(path) != fact.sha256:
            return f"{fact.path} has other bytes than were made"
    return None


def _provenance(job: Path, done: bool) -> Check:
    path = job / provenance.NAME
    if not path.is_file():
        return Check(provenance.NAME, "it is missing, and the job is done" if done else None, present=False)
    document = read_json(path)
    if document.get("_type") != provenance.STATEMENT or not isinstance(document.get("subject"), list):
        return Check(provenance.NAME, "it is not a statement")
    recipe = document.get("predicate", {}).get("buildDefinition", {}).get("externalParameters", {}).get("recipe", {})
    for subject in [*document["subject"], {"name": "recipe.yaml", "digest": recipe.get("digest", {})}]:
        name = str(subject.get("name", ""))
        file = job / name
        if ".." in Path(name).parts or not file.is_file():
            return Check(provenance.NAME, f"{name}, one of its subjects, is missing")
        if files.sha256(file) != subject.get("digest", {}).get("sha256"):
            return Check(provenance.NAME, f"{name} does not have the digest in it")
    return Check(provenance.NAME, None)

"""Check a record that came from a remote store before any of its files is fetched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath

from runner.job import files, records
from runner.job.records import FileFact, Record
from runner.plan.keys import sha256

_HEX = frozenset("0123456789abcdef")


def fault(record: Record, key: str) -> str | None:
    """Return why a record is not that of the step with this key, or names unsafe files: a clause, or None."""
    if record.key != key:
        return f"its record is that of another key, {record.key}"
    if (made := _key_of(record.key_inputs)) != key:
        return f"the inputs in its record have the key {made}"
    for fact in record.files:
        if reason := _unsafe(fact):
            return reason
    names = {fact.path for fact in record.files}
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    if len(names) < len(record.files) or names & folders:
        return "its record names a file twice, or as a folder too"
    if (digest := _digest(record)) != record.digest:
        return f"its files have the digest {digest}, its record says {record.digest}"
    return None


def is_key(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= _HEX


def _key_of(key_inputs: object) -> str:
    """Return the key of a record's inputs; "none" where they are not valid."""
    if not isinstance(key_inputs, Mapping):
        return "none"
    try:
        return sha256(key_inputs)
    except (TypeError, ValueError):
        return "none"


def _digest(record: Record) -> str:
    pairs = [(fact.path, fact.sha256) for fact in record.files]
    if record.artifact_type == "metrics":
        metrics = files.pretty(dict(record.metrics)).encode()
        pairs.append(("../metrics.json", hashlib.sha256(metrics).hexdigest()))
    return records.digest(pairs)


def _unsafe(fact: FileFact) -> str | None:
    """Return why a file of a record must not be written: a clause, or None."""
    path = fact.path
    if not isinstance(path, str) or not is_key(fact.sha256) or not isinstance(fact.size, int) or fact.size < 0:
        return f"its record describes {json.dumps(path)} in a way that no step does"
    if not isinstance(fact.mtime_ns, int) or isinstance(fact.mtime_ns, bool):
        return f"its record describes {json.dumps(path)} in a way that no step does"
    parts = path.split("/")
    if not path or "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
        return f"its record names {json.dumps(path)}, which is a place outside of the entry"
    if len(path) > 1024:
        return f"its record names a file by {len(path)} characters, which no step does"
    return None

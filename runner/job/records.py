"""The record of a committed step: its outputs, inputs and environment, with hashes to verify them.

`seal` is the sha256 of the record's canonical JSON without the seal, so that a change of any number is noticed.
`digest` covers the bytes that came out: sha256 over the sorted (path, sha256) of out/, or, for a step that makes only
metrics, of metrics.json.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runner.job.files import canonical

SCHEMA = 1
# Suffixes of files with weights: a checkpoint, an ONNX graph, an engine, a compiled package, GGUF.
WEIGHTS = (".safetensors", ".onnx", ".onnx_data", ".data", ".engine", ".xz", ".pt2", ".gguf")


@dataclass(frozen=True)
class FileFact:
    """One file of out/: `path` relative to out/, with "/"."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """The record of one step.

    `recipe` is the name of the recipe that made it, `inputs` the digests of what it was made from; `seconds` are those
    of the run that finished it, `resumed_at` how many layers were finished when it began (None: none); `memory` is in
    bytes, `finished` ISO 8601 UTC.
    """

    key: str
    key_inputs: Mapping[str, Any]
    kind: str
    kind_version: int
    id: str
    recipe: str
    seconds: float
    memory: int
    metrics: Mapping[str, float]
    details: Mapping[str, Any]
    artifact_type: str
    inputs: Mapping[str, str]
    environment: Mapping[str, Any]
    resumed_at: int | None = None
    digest: str = ""
    files: Sequence[FileFact] = field(default=())
    finished: str = ""

    def to_json(self) -> dict[str, Any]:
        # Through text, so that the seal covers what a reader will parse: JSON has no integer keys and no tuples.
        document = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))
        return {**document, "seal": seal(document)}


def seal(document: Mapping[str, Any]) -> str:
    unsealed = {name: value for name, value in document.items() if name != "seal"}
    return hashlib.sha256(canonical(unsealed).encode()).hexdigest()


def digest(files: Sequence[tuple[str, str]]) -> str:
    """Return the sha256 over (path, sha256) pairs, in the order of their paths."""
    return hashlib.sha256("".join(f"{path}\0{sha}\n" for path, sha in sorted(files)).encode()).hexdigest()


def parse(text: str) -> Record:
    """Parse a record. ValueError says, as a clause about record.json, why it is not valid."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError("is not JSON") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"is not a record of schema {SCHEMA}")
    if document.get("seal") != seal(document):
        raise ValueError("was changed after it was written")
    fields = {name: value for name, value in document.items() if name not in ("schema", "seal")}
    try:
        files = tuple(FileFact(**fact) for fact in fields.pop("files"))
        return Record(files=files, **fields)
    except (KeyError, TypeError) as error:
        raise ValueError("lacks fields of a record, or has foreign ones") from error


def now() -> str:
    """Return the time in ISO 8601, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def weight_bytes(record: Record) -> int | None:
    """Return the bytes of the files with weights that a step made; None where it made none."""
    sizes = [fact.size for fact in record.files if fact.path.endswith(WEIGHTS)]
    return sum(sizes) if sizes else None

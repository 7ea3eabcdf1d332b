"""Keys: the identity of a step's result before it exists. Pure functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from runner.data import packing
from runner.plan.types import PlannedStep, ResolvedData, ResolvedTasks
from runner.recipe.types import Step


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces and shortest-repr floats: equal values, equal text. NaN is a ValueError."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys of a mapping in a key must be strings: {sorted(map(repr, value))}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def sha256(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def step_seed(recipe_seed: int, step_id: str) -> int:
    """A seed of 63 bits for one step, so that reordering or adding steps leaves the seeds of the others alone."""
    return int.from_bytes(hashlib.sha256(f"{recipe_seed}/{step_id}".encode()).digest()[:8], "big") >> 1


def data_inputs(data: ResolvedData) -> dict[str, Any]:
    """What of a data entry decides its tokens. The names and folders of local files do not."""
    spec = data.spec
    facts: dict[str, Any] = {
        "digest": data.digest,
        "sequence_length": spec.sequence_length,
        "samples": spec.samples,
        "packing": spec.packing,
        "version": packing.VERSION,
    }
    if not data.files or any(file.suffix != ".txt" for file in data.files):
        facts["field"] = spec.field
    if not data.files:
        facts["split"] = spec.split
    return facts


def key_inputs(
    step: Step,
    *,
    version: int,
    seed: int,
    references: Iterable[str],
    inputs: Mapping[str, str],
    data: Mapping[str, ResolvedData],
    environment: Mapping[str, str],
    processes: int = 1,
    tasks: Mapping[str, ResolvedTasks] | None = None,
) -> dict[str, Any]:
    """The mapping whose hash is the key of a step.

    `references` are the parameters that name data, checkpoints or gates: the names themselves change no result, so
    what they name stands in `inputs` (parameter → key of a step, or digest of the model) and `data` instead, and
    gates stand nowhere.
    """
    hidden = set(references)
    several = {"processes": processes} if processes > 1 else {}
    named = {"tasks": {name: list(found.entries) for name, found in sorted(tasks.items())}} if tasks else {}
    return {
        **several,
        **named,
        "kind": step.kind,
        "kind_version": version,
        "params": {name: _plain(value) for name, value in sorted(step.params.items()) if name not in hidden},
        "seed": seed,
        "inputs": dict(sorted(inputs.items())),
        "data": {parameter: data_inputs(entry) for parameter, entry in sorted(data.items())},
        "environment": dict(sorted(environment.items())),
    }


def plan_key(name: str, model_digest: str, steps: Iterable[PlannedStep]) -> str:
    """The identity of a job: everything in plan.json, gates included, since a job records how they went."""
    return sha256({"name": name, "model": model_digest, "steps": [step.public() for step in steps]})

"""Keys: the identity of a step's result before it exists. Pure functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from runner.data import image_records, packing
from runner.plan.types import PlannedStep, ResolvedData, ResolvedTasks
from runner.recipe.types import Step


def canonical(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and shortest-repr floats; raise ValueError for NaN or infinity."""
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
    """Return a seed of 63 bits for one step.

    It depends on no other step, so that reordering or adding steps does not change the seeds of the others.
    """
    return int.from_bytes(hashlib.sha256(f"{recipe_seed}/{step_id}".encode()).digest()[:8], "big") >> 1


def data_inputs(data: ResolvedData) -> dict[str, Any]:
    """Return the properties of a data entry that decide its tokens; names and folders of local files do not."""
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
    if spec.images is not None:
        facts |= {"images": spec.images, "packages": image_records.packages()}
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
    """Return the mapping whose hash is the key of a step.

    `references` are the parameters that name data, checkpoints or gates. The names themselves change no result, so that
    `inputs` (parameter → key of a step, or digest of the model) and `data` hold what they name; gates are left out.
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
    """Return the identity of a job: a hash of all of plan.json, gates included, since a job records their results."""
    return sha256({"name": name, "model": model_digest, "steps": [step.public() for step in steps]})

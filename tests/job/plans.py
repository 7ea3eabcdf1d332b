"""Plans made by hand: small, and without a model that anything could load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_config import ModelConfig
from runner.plan.types import Plan, PlannedStep, ResolvedModel
from runner.recipe.types import ModelSpec, Recipe


def sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def plan(steps: Sequence[Mapping[str, Any]], name: str = "demo", model: Path | None = Path("/nowhere/model")) -> Plan:
    """A plan of `steps`: {id, kind, params, inputs, gates, produces}; inputs default to the step before."""
    facts = CheckpointFacts("m", ModelConfig.of({}), {}, "", 0, ())
    planned: list[PlannedStep] = []
    for index, step in enumerate(steps):
        made = [earlier.id for earlier in planned if earlier.produces != "metrics"]
        inputs = step.get("inputs", {"checkpoint": made[-1] if made else "model"})
        keys = {p.id: p.key for p in planned} | {"model": "ab" * 32}
        key_inputs = {
            "kind": step["kind"], "params": step.get("params", {}), "environment": {},
            "inputs": {name: keys[id] for name, id in inputs.items()},
        }  # fmt: skip
        params = step.get("params", {})
        made_of = PlannedStep(
            index=index, id=step["id"], kind=step["kind"], kind_version=1, params=params, seed=index, inputs=inputs,
            data={}, consumes=("checkpoint",), produces=step.get("produces", "checkpoint"), gates=step.get("gates", {}),
            key=sha(key_inputs), key_inputs=key_inputs, folder=f"{index + 1:02}-{step['id']}",
        )  # fmt: skip
        planned.append(made_of)
    recipe = Recipe(
        file="demo.yaml", name=name, description="", params={}, model=ModelSpec("m"), seed=0, data={}, steps=(),
        document={"version": 1, "name": name, "model": {"source": "m"}},
    )  # fmt: skip
    resolved = ResolvedModel("m", None, None, model, "ab" * 32, facts)
    key = sha([name, [step.public() for step in planned]])
    return Plan(recipe, resolved, {}, tuple(planned), key, "cpu")

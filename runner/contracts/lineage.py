"""The lineage of a checkpoint: the planner knows it and passes it to the worker, so that no model card guesses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AppliedStep:
    """A step that made a checkpoint from another one; secrets in `params` are hidden."""

    id: str
    kind: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Lineage:
    """The model that a checkpoint was made from, as the recipe names it, and the steps that made it, in order."""

    source: str
    steps: tuple[AppliedStep, ...] = field(default=())

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Lineage:
        """Return the lineage that `dataclasses.asdict` turned into JSON."""
        return Lineage(value["source"], tuple(AppliedStep(**step) for step in value["steps"]))

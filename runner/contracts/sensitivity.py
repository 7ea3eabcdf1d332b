"""What each group of sites loses under each candidate: the artifact of `analyze.sensitivity`. Standard library only.

schemas/artifacts/sensitivity.schema.json describes the file for others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "sensitivity.json"
SCHEMA = 1


@dataclass(frozen=True)
class SiteInputs:
    """What calibration says of the inputs X of a site.

    outliers           the largest root mean square of a column, over the median of all columns
    effective_columns  (tr H)² / tr H², H = E[xxᵀ]: how many columns of equal energy would be as many
    columns            columns of X
    """

    outliers: float
    effective_columns: float
    columns: int


@dataclass(frozen=True)
class SiteFacts:
    """One site: `errors` is candidate → relative error of its output, tr(E H Eᵀ) / tr(W H Wᵀ).

    `tokens` reached it. `inputs` is None where they were too few: the errors are then those of the weight, ‖E‖² / ‖W‖².
    """

    weights: int
    tokens: int
    errors: Mapping[str, float]
    inputs: SiteInputs | None = None


@dataclass(frozen=True)
class Group:
    """Sites that servers fuse, or one site alone: they are stored alike. `losses` is candidate → loss of the model."""

    sites: Mapping[str, SiteFacts]
    layer: int
    losses: Mapping[str, float]

    @property
    def weights(self) -> int:
        return sum(site.weights for site in self.sites.values())


@dataclass(frozen=True)
class Sensitivity:
    """A measurement. `measure` says what a loss is, `unit` in which unit; `candidates` has the params of each."""

    measure: str
    unit: str
    candidates: Mapping[str, Mapping[str, Any]]
    groups: tuple[Group, ...]
    data: Mapping[str, int] = field(default_factory=dict)  # windows, sequence_length

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "groups": [asdict(group) for group in self.groups]}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Sensitivity:
        """Return what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']} is not {SCHEMA}")
        groups = tuple(
            Group(
                {
                    name: SiteFacts(**{**site, "inputs": site["inputs"] and SiteInputs(**site["inputs"])})
                    for name, site in group["sites"].items()
                },
                group["layer"],
                group["losses"],
            )
            for group in document["groups"]
        )
        return Sensitivity(document["measure"], document["unit"], document["candidates"], groups, document["data"])


def read(folder: Path) -> Sensitivity:
    """Return the measurement in the result of a step. Raises OSError, and what `Sensitivity.from_json` raises."""
    return Sensitivity.from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))

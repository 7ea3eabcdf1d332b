"""The plan as data: the resolved, ordered steps, each with the key that names its result before it exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_description import Linears
from runner.contracts.planned_account import PlannedAccount
from runner.contracts.step_kind import Cost, DataFacts, MachineFacts
from runner.errors import Diagnostic
from runner.plan.environments import Environment
from runner.plan.serving import Served
from runner.recipe.types import DataSpec, Recipe

MODEL = "model"  # what the recipe's own model is called among the inputs of steps
UNPACKED = "model/unpacked"  # and the dense checkpoint that it stands for, where it is stored packed


@dataclass(frozen=True)
class ResolvedModel:
    """A model that was found; `digest` is the sha256 of its file names and contents (or of its Hub commit).

    `files` has the sha256 of each file of a local model. Where its weights are stored in low precision, `facts` and
    `digest` are those of the dense checkpoint that they stand for, and `stored` says how they are stored; `path` is the
    folder of the model as it is stored until `resolve.with_model` has made the dense one.
    """

    source: str
    revision: str | None
    commit: str | None
    path: Path | None  # None: a Hub model that is not downloaded yet
    digest: str
    facts: CheckpointFacts
    files: Mapping[str, str] = field(default_factory=dict)
    stored: str = ""


@dataclass(frozen=True)
class ResolvedData:
    """A data entry that was found: `files` on this machine and the digest of their bytes (or of the Hub commit)."""

    spec: DataSpec
    files: tuple[Path, ...]
    commit: str | None
    digest: str
    bytes: int


@dataclass(frozen=True)
class ResolvedTasks:
    """The task files that a parameter names: `paths` by the entry as written; `entries` are part of the key.

    They hold the digest of the files of a local task, wherever those are, or the name of a task of the harness.
    """

    paths: Mapping[str, Path]
    entries: tuple[str, ...]


@dataclass(frozen=True)
class PlannedStep:
    """A step of a plan, with its parameters, its inputs and its key.

    `inputs` maps a parameter ("checkpoint" for the main input) to "model", the id of an earlier step, or "id/parameter"
    for a further model that this step names itself. `key_inputs` is the mapping whose canonical JSON is hashed into
    `key`; records store it to explain changes. `params` has no gates; those are in `gates`: metric → rule.
    """

    index: int
    id: str
    kind: str
    kind_version: int
    params: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, str]
    data: Mapping[str, str]  # parameter → name of a data entry
    consumes: tuple[str, ...]
    produces: str
    gates: Mapping[str, Mapping[str, Any]]
    key: str
    key_inputs: Mapping[str, Any]
    folder: str  # "04-gptq": the step's folder in the job directory
    processes: int = 1
    resources: Mapping[str, Any] = field(default_factory=dict)  # as the recipe asks; they decide no byte
    environment: Environment | None = None  # of a foreign kind
    tasks: Mapping[str, ResolvedTasks] = field(default_factory=dict)  # by parameter; their paths are not in plan.json
    account: PlannedAccount | None = None  # of a step that makes a checkpoint
    trains: str = ""  # what it trains, for the plan
    sites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names of the sites of its inputs, by parameter
    linears: Mapping[str, Linears] = field(default_factory=dict)  # the linear modules of their models, likewise

    @property
    def has_environment(self) -> bool:
        return self.environment is not None

    def public(self) -> dict[str, Any]:
        """Return the JSON of plan.json: nothing machine-dependent beyond what is in `key_inputs`."""
        return {
            "index": self.index, "id": self.id, "kind": self.kind, "kind_version": self.kind_version,
            "params": dict(self.params), "seed": self.seed, "inputs": dict(self.inputs), "data": dict(self.data),
            "consumes": list(self.consumes), "produces": self.produces,
            "gates": {k: dict(v) for k, v in self.gates.items()}, "key": self.key, "folder": self.folder,
            "key_inputs": dict(self.key_inputs),
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A resolved recipe: same recipe, model, data, version → same plan, byte for byte (`plan.json`)."""

    recipe: Recipe
    model: ResolvedModel
    data: Mapping[str, ResolvedData]
    steps: tuple[PlannedStep, ...]
    key: str
    device: str
    models: Mapping[str, ResolvedModel] = field(default_factory=dict)  # that single steps name: "id/parameter" → model
    warnings: tuple[Diagnostic, ...] = ()  # accepted, but probably not intended
    served: tuple[Served, ...] = ()  # how the servers of `serve` load each artifact

    def given(self) -> dict[str, ResolvedModel]:
        """Return every model that exists before the first step, by the name that inputs of steps use."""
        return {MODEL: self.model, **self.models}

    @property
    def job_id(self) -> str:
        return f"{self.recipe.name}-{self.key[:12]}"

    def step(self, id: str) -> PlannedStep:
        return next(s for s in self.steps if s.id == id)


@dataclass(frozen=True)
class Forecast:
    """The forecast of one step: `state` is "cached", "run" or "resume"; `reason` is a phrase.

    `unit` is what `resume_layer` and `layers` count: "layer", or "step" of a training. `assignment` is that of a step
    with `bits: auto` whose measurement is in the store (runner.steps.assignment).
    """

    step: PlannedStep
    state: str
    reason: str
    cost: Cost
    resume_layer: int | None = None
    layers: int | None = None
    unit: str = "layer"
    assignment: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Preview:
    """Everything that `runner plan` shows."""

    plan: Plan
    forecasts: tuple[Forecast, ...]
    machine: MachineFacts
    notes: tuple[str, ...] = field(default=())


__all__ = [
    "MODEL", "UNPACKED", "DataFacts", "Forecast", "Plan", "PlannedStep", "Preview", "ResolvedData", "ResolvedModel",
]  # fmt: skip

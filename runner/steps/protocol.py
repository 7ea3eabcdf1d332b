"""What a step kind is: a module `runner/steps/<family>/<method>.py` beside `schemas/steps/<family>.<method>.schema.json`.

The module is imported by the planner, so its top level imports nothing heavy (no torch, no transformers); `run` and
what it calls import what they need. It holds these names:

    VERSION: int                     bumped when results change
    CONSUMES: tuple[str, ...]        artifact types its main input may have ("checkpoint", "quantized-checkpoint")
    PRODUCES: str                    "checkpoint", "quantized-checkpoint" or "metrics"
    REQUIRES: tuple[Requirement, ...]   packages beyond the base installation, with the extra that installs them
    METRICS: tuple[str, ...]         the metrics that a gate may name (evaluate kinds; else empty)
    check(params, inputs) -> list[Diagnostic]      model-aware complaints; Diagnostic.path addresses params
    estimate(params, inputs) -> Cost
    outcome(params, inputs) -> CheckpointFacts      what the produced checkpoint will look like (checkpoint kinds)
    run(ctx) -> Result

Parameters have their names, types, ranges, defaults and descriptions in the schema alone. Three annotations there
tell the planner what a parameter refers to:

    "x-runner-ref": "data"          the name of an entry of the recipe's `data`
    "x-runner-ref": "checkpoint"    "model" or the id of an earlier step that produces a checkpoint
    "x-runner-ref": "gates"         quality gates; never part of a step's key
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner.errors import Diagnostic
from runner.model.facts import CheckpointFacts

if TYPE_CHECKING:
    import torch

CHECKPOINT = "checkpoint"
QUANTIZED = "quantized-checkpoint"
METRICS_ONLY = "metrics"

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Requirement:
    """A package a kind needs: `package` as pip names it, `extra` the extra of this project that installs it."""

    package: str
    extra: str


@dataclass(frozen=True)
class Cost:
    """What a step takes: peak resident bytes, bytes written that stay, bytes of scratch, and seconds."""

    memory: int
    disk: int
    scratch: int
    seconds: float


@dataclass(frozen=True)
class DataFacts:
    """A data entry as the planner sees it: tokens = samples × sequence_length, `samples` None when all are used."""

    name: str
    samples: int | None
    sequence_length: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class MachineFacts:
    """The machine, read without torch. `flops` is a rough rate of bf16 or float32 products, in operations a second."""

    cpus: int
    memory: int
    memory_available: int
    device: str  # "cpu", "cuda" or "mps": where steps will run
    device_memory: int
    gpu_name: str | None
    flops: float
    disk_bytes_per_second: float


@dataclass(frozen=True)
class Inputs:
    """What `check`, `estimate` and `outcome` see. `checkpoint` is the step's main input; `others` by parameter name."""

    checkpoint: CheckpointFacts
    others: Mapping[str, CheckpointFacts]
    data: Mapping[str, DataFacts]  # by the parameter that names it
    machine: MachineFacts


@dataclass(frozen=True)
class Result:
    """What `run` made. `metrics` are numbers a gate or a report may use; `details` is any further JSON for the record."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """An input as the worker sees it: a folder, its type, and the digest of its bytes."""

    path: Path
    type: str
    digest: str


class Context(Protocol):
    """What the worker hands to `run`.

    `inputs["checkpoint"]` is the main input; every `x-runner-ref: checkpoint` parameter is there under its own name.
    `out_dir` is empty or holds what an interrupted run left; `scratch_dir` outlives an interruption and is removed
    on success. All randomness derives from `seed`.
    """

    params: Params
    inputs: Mapping[str, Artifact]
    out_dir: Path
    scratch_dir: Path
    seed: int
    device: str
    threads: int
    recipe_text: str  # the resolved recipe, for model cards

    def data(self, parameter: str) -> torch.Tensor:
        """Token ids [samples, sequence_length], int64, of the data entry that `parameter` names."""
        ...

    def data_facts(self, parameter: str) -> DataFacts: ...

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event (see runner.progress.events); never blocks on the terminal."""
        ...

    def safe_point(self) -> None:
        """Called where everything done so far can be resumed; raises Interrupted if a stop was asked for."""
        ...


class Kind(Protocol):
    """The module of a kind, for type checking."""

    VERSION: int
    CONSUMES: tuple[str, ...]
    PRODUCES: str
    REQUIRES: tuple[Requirement, ...]
    METRICS: tuple[str, ...]

    def check(self, params: Params, inputs: Inputs) -> list[Diagnostic]: ...
    def estimate(self, params: Params, inputs: Inputs) -> Cost: ...
    def outcome(self, params: Params, inputs: Inputs) -> CheckpointFacts: ...
    def run(self, ctx: Context) -> Result: ...

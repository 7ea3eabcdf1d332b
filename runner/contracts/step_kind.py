"""A step kind is a module `runner/steps/<family>/<method>.py` and a `schemas/steps/<family>.<method>.schema.json`.

The module is imported by the planner, so its top level imports nothing heavy (no torch, no transformers); `run` and
what it calls import what they need. It holds these names:

    VERSION: int                     bumped when results change
    CONSUMES: tuple[str, ...]        artifact types its main input may have ("checkpoint", "quantized-checkpoint",
                                     "engine")
    NAMED_ENGINES: bool              optional: of CONSUMES an engine is taken only where `from` names it
    PRODUCES: str                    "checkpoint", "quantized-checkpoint", "engine", "metrics", or "same": what the main
                                     input is
    REQUIRES: tuple[Requirement, ...]   packages beyond the base installation, with the extra that installs them
    METRICS: Mapping[str, Range]     the metrics that a gate may name, and the values that each can have; names alone
                                     where the values are not known; "<task>/<metric>" stands for any text in <...>
    NOISE: Mapping[str, Noise]       optional: the metrics that are means of values of single windows or questions,
                                     which `details["samples"]` has; gates on them may have a `confidence`
    requires(params) -> tuple[Requirement, ...]   optional: replaces REQUIRES for these parameters
    LIBRARIES: tuple[str, ...]       optional: which of torch and transformers decide its result, so that its key names
                                     their versions and its worker imports torch; both where it is absent
    environment(params, machine) -> Mapping[str, str]   optional: properties of the machine, beyond required packages,
                                     that the result is for or depends on; part of its key
    BASE: str                        optional: the parameter that names the checkpoint which the result is made from,
                                     where it is given; without it the main input
    DISTRIBUTED: bool                optional: whether it supports `resources: {processes: N}`, which its key then has
    DIVISIBLE: bool                  optional: whether that many processes share its work and give the bytes of one, so
                                     that its key does not have them
    ENVIRONMENT: tuple[str, ...]     optional, of a foreign kind: the requirements of the environment that its tool runs
                                     in (`ctx.python()`), where a recipe names none with `env`; empty: then in none
    ALONE: bool                      optional: whether it measures the machine, so that nothing else may run meanwhile
    check(params, inputs) -> list[Diagnostic]      model-aware complaints; Diagnostic.path addresses params
    estimate(params, inputs) -> Cost
    outcome(params, inputs) -> CheckpointFacts      what the produced checkpoint will look like; of an engine, the
                                                    checkpoint it is made from with `engine` set; of metrics only where
                                                    later steps read them: the checkpoint with `measured` set
    changes(params, inputs) -> Collection[str]      optional: the tensors of the main input whose values the step may
                                                    change; where it is absent, all that belong to the model
    adds(params, inputs) -> Mapping[str, str]       optional: the tensors of the result that come from none of the
                                                    input, each with the reason
    unsettled(params, inputs) -> Collection[str]    optional: the tensors of the result whose shape only the run decides
    trains(params, inputs) -> str                   optional: what the step trains, as a line of the plan
    source_facts(inputs) -> CheckpointFacts         optional: the source of the step's result, if not its main input
    run(ctx) -> Result                              of a checkpoint, with the account of tensors that the function
                                                    returned which wrote it (`runner.model.checkpoint.derived.write`)

Parameters have their names, types, ranges, defaults and descriptions in the schema alone. Six annotations there
define what a parameter refers to:

    "x-runner-ref": "data"          the name of an entry of the recipe's `data`
    "x-runner-ref": "checkpoint"    "model" or the id of an earlier step that produces a checkpoint; where the schema
                                    allows a mapping with `source` and `revision`, another model; "source" is the
                                    checkpoint that the step's engine was made from
    "x-runner-ref": "engine"        the id of an earlier step that makes an engine
    "x-runner-ref": "sensitivity"   the id of an earlier step of `analyze.sensitivity`
    "x-runner-ref": "tasks"         names of tasks, or task files (runner.data.harness_tasks); `ctx.files` has the paths
    "x-runner-ref": "gates"         quality gates; never part of a step's key
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from runner.contracts.context import Artifact, Context, DataFacts, Params, Result
from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic

__all__ = [
    "CHECKPOINT", "ENGINE", "METRICS_ONLY", "QUANTIZED", "SAME", "Artifact", "Context", "Cost", "DataFacts", "Inputs",
    "Kind", "MachineFacts", "Params", "Requirement", "Result",
]  # fmt: skip

CHECKPOINT = "checkpoint"
QUANTIZED = "quantized-checkpoint"
METRICS_ONLY = "metrics"
SAME = "same"
ENGINE = "engine"


@dataclass(frozen=True)
class Requirement:
    """A package that a kind needs: `package` as pip names it, `extra` the extra of this project that installs it."""

    package: str
    extra: str


@dataclass(frozen=True)
class Cost:
    """The cost of a step: peak resident bytes, bytes written that stay, bytes of scratch, and seconds."""

    memory: int
    disk: int
    scratch: int
    seconds: float


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
    instructions: tuple[str, ...] = ()  # instruction sets of the processor that compiled code may need


@dataclass(frozen=True)
class Inputs:
    """The input of `check`, `estimate` and `outcome`: `checkpoint` is the main input; `others` by parameter name."""

    checkpoint: CheckpointFacts
    others: Mapping[str, CheckpointFacts]
    data: Mapping[str, DataFacts]  # by the parameter that names it
    machine: MachineFacts
    processes: int = 1  # of `resources: {processes: N}`
    has_environment: bool = False  # whether the step names one with `env`


class Kind(Protocol):
    """The module of a kind, for type checking."""

    VERSION: int
    CONSUMES: tuple[str, ...]
    PRODUCES: str
    REQUIRES: tuple[Requirement, ...]
    METRICS: Collection[str]

    def check(self, params: Params, inputs: Inputs) -> list[Diagnostic]: ...
    def estimate(self, params: Params, inputs: Inputs) -> Cost: ...
    def outcome(self, params: Params, inputs: Inputs) -> CheckpointFacts: ...
    def run(self, ctx: Context) -> Result: ...

"""What the worker hands to a step's `run`, and what `run` gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner.contracts.lineage import AppliedStep, Lineage
from runner.contracts.model_description import Linears

if TYPE_CHECKING:
    import torch

Params = Mapping[str, Any]


@dataclass(frozen=True)
class DataFacts:
    """A data entry as the planner sees it: tokens = samples × sequence_length, `samples` None when all are used."""

    name: str
    samples: int | None
    sequence_length: int
    bytes: int
    digest: str

    @property
    def tokens(self) -> int:
        """Tokens a step will see; where all windows are asked for, about a quarter of the bytes of the text."""
        return self.samples * self.sequence_length if self.samples else self.bytes // 4


@dataclass(frozen=True)
class Result:
    """What `run` made: `metrics` that a gate or a report may use, and `details`, any further JSON for the record."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """An input as the worker sees it: a folder, its type, the digest of its bytes, how it came to be, and its sites.

    `sites` has their names, `linears` the linear modules of the model; None where nobody has found them out.
    """

    path: Path
    type: str
    digest: str
    lineage: Lineage
    sites: tuple[str, ...] | None = None
    linears: Linears | None = None


class Context(Protocol):
    """What the worker hands to `run`.

    `inputs["checkpoint"]` is the main input; every `x-runner-ref: checkpoint` or `engine` parameter is there under its
    own name.
    `out_dir` is empty or holds what an interrupted run left; `scratch_dir` outlives an interruption and is removed
    on success. `cache_dir`, in the store, outlives every step: what it holds makes steps quicker and decides no result,
    and it need not exist. All randomness derives from `seed`.
    """

    @property
    def params(self) -> Params: ...

    @property
    def step(self) -> AppliedStep:
        """The step itself, for model cards."""
        ...

    @property
    def inputs(self) -> Mapping[str, Artifact]: ...

    @property
    def out_dir(self) -> Path: ...

    @property
    def scratch_dir(self) -> Path: ...

    @property
    def cache_dir(self) -> Path: ...

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int: ...

    @property
    def processes(self) -> int:
        """Processes that train together; 1 for every other kind."""
        ...

    @property
    def recipe_text(self) -> str:
        """The resolved recipe, for model cards."""
        ...

    def data(self, parameter: str) -> torch.Tensor:
        """Token ids [samples, sequence_length], int64, of the data entry that `parameter` names."""
        ...

    def data_facts(self, parameter: str) -> DataFacts: ...

    def files(self, parameter: str) -> Mapping[str, Path]:
        """The entries of a parameter of task names ("x-runner-ref": "tasks") that are files here, with their paths."""
        ...

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event (see runner.progress.events); never blocks on the terminal."""
        ...

    def safe_point(self) -> None:
        """Called where everything done so far can be resumed; raises Interrupted if a stop was asked for."""
        ...

"""The data that the worker passes to a step's `run`, and the result that `run` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner.contracts.account import Account
from runner.contracts.lineage import AppliedStep, Lineage
from runner.contracts.model_description import Linears

if TYPE_CHECKING:
    import torch

Params = Mapping[str, Any]


@dataclass(frozen=True)
class DataFacts:
    """A data entry as the planner sees it: tokens = samples × sequence_length, `samples` None when all are used.

    Samples with images are records of at most `sequence_length` tokens.
    """

    name: str
    samples: int | None
    sequence_length: int
    bytes: int
    digest: str
    has_images: bool = False

    @property
    def tokens(self) -> int:
        """Tokens a step will see; where all windows are used, estimated as a quarter of the bytes of the text."""
        return self.samples * self.sequence_length if self.samples else self.bytes // 4


class Samples(Protocol):
    """Texts with images as the forward of a model takes them; each is a window of its own.

    ids      [samples, sequence_length], int64: the tokens of each, then zeros
    lengths  how many tokens each has
    """

    @property
    def ids(self) -> torch.Tensor: ...

    @property
    def lengths(self) -> Sequence[int]: ...

    def inputs(self, row: int) -> Mapping[str, torch.Tensor]:
        """Return the arguments of the model's forward for a sample: input_ids [1, tokens], pixels and the like."""
        ...


@dataclass(frozen=True)
class Result:
    """The result of `run`: `metrics` for gates and reports, and `details`, any further JSON for the record.

    `account`, of a step that makes a checkpoint, is what its writer returned: the worker compares it with the plan.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    account: Account | None = None


@dataclass(frozen=True)
class Artifact:
    """An input as the worker sees it: folder, type, digest of its bytes, lineage and sites.

    `sites` are the names of its sites, `linears` the linear modules of the model; None where they have not been
    determined.
    """

    path: Path
    type: str
    digest: str
    lineage: Lineage
    sites: tuple[str, ...] | None = None
    linears: Linears | None = None


class Context(Protocol):
    """Everything that the worker passes to `run`.

    `inputs["checkpoint"]` is the main input; every `x-runner-ref: checkpoint` or `engine` parameter is there under its
    own name.
    `out_dir` is empty or holds the files of an interrupted run; `scratch_dir` outlives an interruption and is removed
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
        """Processes that train together or share the batches of a step; 1 for every other kind."""
        ...

    @property
    def limits(self) -> Mapping[str, float]:
        """Gates with a fixed upper limit: metric → limit. A step may end early at one, with GateFailed."""
        ...

    @property
    def recipe_text(self) -> str:
        """The resolved recipe, for model cards."""
        ...

    def data(self, parameter: str) -> torch.Tensor:
        """Return the token ids [samples, sequence_length], int64, of the data entry that `parameter` names."""
        ...

    def images(self, parameter: str) -> Samples | None:
        """Return the samples of the data entry that `parameter` names; None where it has no images."""
        ...

    def data_facts(self, parameter: str) -> DataFacts: ...

    def files(self, parameter: str) -> Mapping[str, Path]:
        """Return name → path of the entries of a task parameter ("x-runner-ref": "tasks") that are local files."""
        ...

    def emit(self, event: str, **fields: Any) -> None:
        """Send one event (see runner.progress.events); never blocks on the terminal."""
        ...

    def safe_point(self) -> None:
        """Raise Interrupted if a stop was requested; call it where everything done so far can be resumed."""
        ...


class ForeignContext(Context, Protocol):
    """The context of a foreign kind: one whose module names an ENVIRONMENT."""

    @property
    def has_environment(self) -> bool:
        """Whether the step has an environment: where ENVIRONMENT is empty, only one that its recipe names."""
        ...

    def python(self) -> Path:
        """Return the interpreter of the step's environment, which is built where it is missing."""
        ...

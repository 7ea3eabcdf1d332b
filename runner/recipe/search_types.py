"""The `search` of a recipe as data: the space of params, what is measured, and the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = bool | int | float | str
BYTES = "bytes"  # of the weights that a step made: a measure of every step that makes a checkpoint or an engine
MINIMIZE, MAXIMIZE = "minimize", "maximize"


@dataclass(frozen=True)
class Dimension:
    """A param that varies: over `choices`, or where those are empty from `low` to `high`.

    A range is of integers where both bounds are; `step` None: every value between them. `log`: values are drawn evenly
    on a logarithmic scale. `when` is an expression of params without which the param has its default.
    """

    name: str
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    when: str | None = None

    @property
    def is_integer(self) -> bool:
        """Whether a range is one of integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Measure:
    """A metric of a step, or BYTES of what it made."""

    step: str
    metric: str

    @property
    def name(self) -> str:
        return f"{self.step}.{self.metric}"


@dataclass(frozen=True)
class Objective(Measure):
    """A measure to make as small or as large as possible; `direction` is MINIMIZE or MAXIMIZE."""

    direction: str = MINIMIZE


@dataclass(frozen=True)
class Constraint(Measure):
    """Limits of a measure; a trial that does not keep them cannot win."""

    max: float | None = None
    min: float | None = None


@dataclass(frozen=True)
class Search:
    """A search. `trials` and `seconds` are the budget; None has no limit.

    `batch`: so many trials are chosen before the results of any of them are known, however many of them run at once.
    """

    space: tuple[Dimension, ...]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    trials: int | None
    seconds: float | None
    sampler: str
    seed: int
    batch: int

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (*self.objectives, *self.constraints)


def describe(values: Mapping[str, Value]) -> str:
    """Return the values of a trial as text, in the order of the space: `bits=3, group_size=64`."""
    return ", ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""Compress language models from one validated recipe.

    import runner

    plan = runner.plan(runner.load("recipe.yaml", sets={"bits": 3}))
    job = runner.apply(plan)
    job.metrics["quality"]["perplexity"]

Each name is imported when it is first used; none of them imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from runner.api.comparison import compare as compare
    from runner.api.execution import apply as apply
    from runner.api.jobs import Job as Job
    from runner.api.jobs import jobs as jobs
    from runner.api.plans import JobPlan as JobPlan
    from runner.api.plans import plan as plan
    from runner.api.recipes import Validation as Validation
    from runner.api.recipes import load as load
    from runner.api.recipes import load_all as load_all
    from runner.api.recipes import validate as validate
    from runner.api.searching import Search as Search
    from runner.api.searching import search as search
    from runner.errors import GateFailed as GateFailed
    from runner.errors import Interrupted as Interrupted
    from runner.errors import MachineError as MachineError
    from runner.errors import RecipeError as RecipeError
    from runner.errors import RunnerError as RunnerError
    from runner.errors import StepFailed as StepFailed
    from runner.errors import StoreError as StoreError
    from runner.errors import UsageError as UsageError

_NAMES = {
    "runner.api.recipes": ("load", "load_all", "validate", "Validation"),
    "runner.api.plans": ("plan", "JobPlan"),
    "runner.api.execution": ("apply",),
    "runner.api.jobs": ("Job", "jobs"),
    "runner.api.comparison": ("compare",),
    "runner.api.searching": ("search", "Search"),
    "runner.errors": (
        "RunnerError", "RecipeError", "UsageError", "MachineError", "StepFailed", "StoreError", "GateFailed",
        "Interrupted",
    ),
}  # fmt: skip
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "GateFailed", "Interrupted", "Job", "JobPlan", "MachineError", "RecipeError", "RunnerError", "Search",
    "StepFailed", "StoreError", "UsageError", "Validation", "apply", "compare", "jobs", "load", "load_all", "plan",
    "search", "validate",
]  # fmt: skip

# `plan` and `search` are functions here and packages below. Importing a package sets it as an attribute of its parent,
# once: they are imported now, while nothing is in them, and the attributes are dropped, so that the names always mean
# the functions.
for _name in ("plan", "search"):
    importlib.import_module(f"runner.{_name}")
    del globals()[_name]


if not TYPE_CHECKING:  # type checkers would accept any name where this function is

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})

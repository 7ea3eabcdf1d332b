"""References of gates with a ratio: a step of this recipe, of its last accepted job, or of a named job.

max_ratio_to: baseline                 the earlier step `baseline`
max_ratio_to: accepted                 this step, in the last accepted job of the recipe (and of its combination)
max_ratio_to: accepted/quality         another step of that job
max_ratio_to: job:llama-int4-3f9a/quality     a step of a job, named by its id or the beginning of it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ACCEPTED = "accepted"
_JOB = "job:"
KEYS = ("max_ratio_to", "min_ratio_to")


@dataclass(frozen=True)
class Reference:
    """A reference as written in `text`; `job` None is this job, `step` None the step of the gate."""

    text: str
    job: str | None
    step: str | None


def parse(text: str) -> Reference:
    """Return the reference in a text, which has the form that the schema of gates allows."""
    head, _, step = text.partition("/")
    if head == ACCEPTED:
        return Reference(text, ACCEPTED, step or None)
    if head.startswith(_JOB):
        return Reference(text, head.removeprefix(_JOB), step or None)
    return Reference(text, None, text)


def from_rule(rule: Mapping[str, Any]) -> Reference | None:
    """Return the reference in the rule of a gate; None for an absolute rule."""
    written = next((rule[key] for key in KEYS if key in rule), None)
    return parse(written) if isinstance(written, str) else None

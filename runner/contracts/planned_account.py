"""The planned account of tensors: what a step that makes a checkpoint does with every tensor of its input, and why.

    changed  other values, or stored in another form
    kept     of the model, and the same bytes
    passed   not of the model (left unread by its architecture); passed through, the same bytes
    tied     a parameter with no tensor of its own: it uses that of another one
    dropped  not written
    added    of the result alone: it comes from no tensor of the input

The account of what was written is `runner.contracts.account`. Standard library only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from runner.contracts.account import Account
from runner.errors import StepFailed

CHANGED, KEPT, PASSED, TIED, DROPPED, ADDED = FATES = ("changed", "kept", "passed", "tied", "dropped", "added")
_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One tensor of the input, or one that is `added`; `nbytes` are its bytes, 0 where it is `tied`."""

    name: str
    role: str
    fate: str
    reason: str
    nbytes: int


@dataclass(frozen=True)
class PlannedAccount:
    """What a step does with every tensor of its input; `written` has the shape of every tensor of its result.

    A shape is None where only the run decides it.
    """

    entries: tuple[Entry, ...]
    written: Mapping[str, tuple[int, ...] | None]

    def without_shapes(self, names: Collection[str]) -> PlannedAccount:
        """Return the same without the shapes of some tensors."""
        return replace(self, written={name: None if name in names else self.written[name] for name in self.written})

    def by_role(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return role → fate → (tensors, bytes), roles in descending order of their bytes."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for entry in self.entries:
            fates = found.setdefault(entry.role, {})
            count, size = fates.get(entry.fate, (0, 0))
            fates[entry.fate] = count + 1, size + entry.nbytes
        return dict(sorted(found.items(), key=lambda pair: (-sum(size for _, size in pair[1].values()), pair[0])))

    def unchanged(self) -> tuple[str, ...]:
        """The tensors whose bytes stay."""
        return tuple(entry.name for entry in self.entries if entry.fate in (KEPT, PASSED))

    def reasons(self) -> dict[str, dict[str, int]]:
        """Return fate → reason → number of tensors."""
        found: dict[str, dict[str, int]] = {}
        for entry in self.entries:
            reasons = found.setdefault(entry.fate, {})
            reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
        return {fate: dict(sorted(found[fate].items())) for fate in FATES if fate in found}

    def document(self) -> dict[str, Any]:
        """Return the account as records and `plan --json` hold it."""
        roles = {
            role: {fate: {"tensors": count, "bytes": size} for fate, (count, size) in sorted(fates.items())}
            for role, fates in self.by_role().items()
        }
        return {"roles": roles, "reasons": self.reasons()}


def check_written(
    planned: Mapping[str, tuple[int, ...] | None],
    written: Mapping[str, tuple[int, ...]],
    unchanged: Collection[str],
    account: Account | None,
) -> None:
    """Raise StepFailed where the tensors of a checkpoint, name → shape, are not those of the plan (None: any shape).

    `unchanged` are those that the plan calls kept or passed: the writer must have copied them, by its `account`.
    """
    missing = sorted(set(planned) - set(written))
    strange = sorted(set(written) - set(planned))
    shapes = {name: tuple(shape) for name, shape in planned.items() if shape is not None}
    other = sorted(name for name in set(shapes) & set(written) if shapes[name] != tuple(written[name]))
    copied = account.unchanged() if account is not None else frozenset()
    rewritten = sorted(name for name in unchanged if name in written and name not in copied)
    faults = [
        f"{_names(names)} {what}"
        for names, what in (
            (missing, "missing"),
            (strange, "there and not planned"),
            (other, "of another shape than planned"),
            (rewritten, "planned to stay and not copied from the input"),
        )
        if names
    ]
    if faults:
        raise StepFailed(
            f"the checkpoint that was written is not the planned one: {'; '.join(faults)}",
            "this is a fault of the step's kind: report it; nothing of this step was kept",
        )


def _names(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"

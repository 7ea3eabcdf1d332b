"""The account of tensors: what became of every tensor of a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

CHANGED = "changed"  # has new values, perhaps under other names
COPIED = "copied"  # has the same bytes and type, perhaps under another name
TIED = "tied"  # is another tensor of the model, and is not stored
DROPPED = "dropped"  # is not in the result


@dataclass(frozen=True)
class TensorFate:
    """What became of one tensor of the input: `fate`, the names that it has in the result, and the reason."""

    fate: str
    names: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Account:
    """The fates of all tensors of the input, by name.

    `added` are tensors of the result that come from none of them, with the reason.
    """

    fates: Mapping[str, TensorFate]
    added: Mapping[str, str] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Return how many tensors have each fate, sorted by fate."""
        return dict(sorted(Counter(fate.fate for fate in self.fates.values()).items()))

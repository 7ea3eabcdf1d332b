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

    def after(self, earlier: Account) -> Account:
        """The account of two steps in one: this one of what `earlier` wrote."""
        fates = {}
        for name, first in earlier.fates.items():
            second = [self.fates[each] for each in first.names]
            names = tuple(sorted({each for fate in second for each in fate.names}))
            if not names:
                fates[name] = TensorFate(DROPPED, (), first.reason or next((fate.reason for fate in second), ""))
            else:
                copied = all(fate.fate == COPIED for fate in (first, *second))
                fates[name] = TensorFate(COPIED if copied else CHANGED, names)
        return Account(fates, {**earlier.added, **self.added})

    def unchanged(self) -> frozenset[str]:
        """The tensors of the input that have the same bytes under the same name."""
        return frozenset(name for name, fate in self.fates.items() if fate.fate == COPIED and fate.names == (name,))

    def counts(self) -> dict[str, int]:
        """Return how many tensors have each fate, sorted by fate."""
        return dict(sorted(Counter(fate.fate for fate in self.fates.values()).items()))

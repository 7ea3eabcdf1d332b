"""Which parameters of a model share one tensor, decided by the tensors that are stored, as transformers decides it.

config.json only says which parameters may share (`tie_word_embeddings`). `PreTrainedModel.tie_weights` of transformers
5 ties the one that is not stored to the one that is, whichever that is, and where both are stored it ties them only
if they are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path

from runner.contracts.facts import TensorHeader

_CHUNK = 16 << 20  # bytes compared at once


def resolve_ties(
    declared: Mapping[str, str], stored: Container[str], equal: Callable[[str, str], bool]
) -> dict[str, str]:
    """Parameter → the stored parameter whose tensor it shares.

    `declared` maps the parameters that the architecture and config.json tie to their source, `stored` holds those
    that the checkpoint has, and `equal` compares two of them. A pair of which neither is stored is left out.
    """
    found: dict[str, str] = {}
    for target, source in declared.items():
        if target in stored and source in stored:
            if equal(target, source):
                found[target] = source
        elif source in stored:
            found[target] = source
        elif target in stored:
            found[source] = target
        else:
            siblings = (other for other, its in declared.items() if its == source and other in stored)
            if (sibling := next(siblings, None)) is not None:
                found[target] = sibling
    return found


def equal_tensors(folder: Path, one: TensorHeader, other: TensorHeader) -> bool:
    """Whether two tensors of a checkpoint have the same type, shape and bytes. Reads until the first difference."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with (folder / one.shard).open("rb") as first, (folder / other.shard).open("rb") as second:
        first.seek(one.begin)
        second.seek(other.begin)
        for start in range(0, one.nbytes, _CHUNK):
            count = min(_CHUNK, one.nbytes - start)
            if first.read(count) != second.read(count):
                return False
    return True

"""A model that runs: what generation, latency and parity ask of a checkpoint, a graph, a package or an engine.

Arrays are numpy's, so that a runtime without torch needs none. `runner.runtime.open.open` opens a folder.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


class Runtime(Protocol):
    """One model and its key-value cache, for one batch of sequences of equal length at a time.

    name         "transformers", "onnxruntime", "aotinductor", "tensorrt", "llama.cpp's format": what runs it
    vocabulary   tokens it gives logits for
    context      tokens that prompt and continuation may have together
    max_batch    sequences it runs at once, or None for any number
    """

    @property
    def name(self) -> str: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def max_batch(self) -> int | None: ...

    def prefill(self, ids: Ids, *, last: bool = False) -> Logits:
        """Forget the cache, run `ids` [b, n]; logits [b, n, V], or with `last` those of the last position [b, 1, V].

        StepFailed where n passes the context or b the batch: both numbers are named.
        """
        ...

    def decode(self, ids: Ids) -> Logits:
        """Run one further token of each sequence, `ids` [b, 1], with what is cached; logits [b, 1, V]."""
        ...

    def close(self) -> None:
        """Give back memory and files."""
        ...

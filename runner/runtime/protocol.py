"""The protocol of runtimes: what generation, latency and parity need of a checkpoint, graph, package or engine.

Arrays are numpy's, so that a runtime need not import torch. `runner.runtime.open.open` opens a folder.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


class Runtime(Protocol):
    """One model and its key-value cache, for one batch of sequences of equal length at a time.

    name         "transformers", "onnxruntime", "aotinductor", "tensorrt", "executorch" or "gguf"
    vocabulary   the number of logits
    context      the most tokens of prompt and continuation together
    max_batch    the most sequences at once, or None for any number
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
        """Clear the cache and run `ids` [b, n]; return logits [b, n, V], or with `last` of the last position [b, 1, V].

        StepFailed where n exceeds the context or b `max_batch`, with both numbers.
        """
        ...

    def decode(self, ids: Ids) -> Logits:
        """Run one further token of each sequence, `ids` [b, 1], with the cache; return logits [b, 1, V]."""
        ...

    def close(self) -> None:
        """Release memory and files."""
        ...

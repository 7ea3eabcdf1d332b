"""Giving freed memory back: glibc keeps fragments of a layer's tensors, some megabytes more with every layer."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from runner.system import peak_memory

SETTLED = 2  # layers after which the peak is that of a layer
GROWTH = 1.04  # times that peak: beyond it, memory is given back after a layer that set a new one
MORE = 1.055  # and beyond this, within layers too: each then takes a fifth more time (measured)


class Layers:
    """Gives back what layers leave, once they take more than the first ones did: else the next layer fills the same

    pages again, which is cheaper than asking for new ones (measured: a tenth of the time of GPTQ). What was left before
    the layers, by the making of a model above all, goes back at once.
    """

    def __init__(self) -> None:
        trim()
        self._ended = 0
        self._settled = self._last = 0
        self.grows = False  # whether it is to be given back within layers too

    def ended(self) -> None:
        """To be called after every layer."""
        peak = peak_memory.peak()
        self._ended += 1
        if self._ended <= SETTLED:
            self._settled = peak
        self.grows = self.grows or peak > MORE * self._settled
        if peak > max(GROWTH * self._settled, self._last):
            trim()
        self._last = peak


def trim() -> None:
    """Return free heap pages to the system, where the C library can (glibc); elsewhere nothing."""
    library = _libc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None

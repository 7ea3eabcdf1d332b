"""Giving freed memory back: glibc keeps fragments of a layer's tensors, some megabytes more with every layer."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from runner.model import usage

GROWTH = 1.06  # times the peak of the first layer


class Layers:
    """Gives back what layers leave, once they take more than the first did: else the next layer fills the same pages

    again, which is cheaper than asking for new ones (measured: a tenth of the time of GPTQ). What was left before the
    layers, by the making of a model above all, goes back at once.
    """

    def __init__(self) -> None:
        trim()
        self._first: int | None = None
        self.grows = False  # whether it is to be given back within layers too

    def ended(self) -> None:
        """To be called after every layer."""
        peak = usage.peak()
        self._first = self._first or peak
        self.grows = self.grows or peak > GROWTH * self._first
        if self.grows:
            trim()


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

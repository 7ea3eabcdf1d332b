"""Giving freed memory back: glibc keeps fragments of a layer's tensors, some megabytes more with every layer.

After every layer it costs nothing that shows (SmolLM2-135M, GPTQ: page faults grow by 2 %, the peak shrinks by 4 %).
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


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

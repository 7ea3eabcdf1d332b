"""Peak memory of this process, per step where the system lets its high-water mark be reset (Linux)."""

from __future__ import annotations

import sys


def reset_peak() -> None:
    """Reset the peak to the current memory, where the system allows it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def peak() -> int:
    """Return the peak resident bytes since the last reset, or since the process started where it cannot be reset."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # It also counts the memory that the parent process held.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

"""Peak memory of this process, per step where the system lets its high-water mark be reset (Linux)."""

from __future__ import annotations

import sys


def reset_peak() -> None:
    """Let the peak start from now."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def peak() -> int:
    """Peak resident bytes since the last reset, or of the whole process where it cannot be reset."""
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
    # It counts what the process that started this one held, too.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

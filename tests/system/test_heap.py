"""Freed memory goes back to the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
from pathlib import Path
from runner.system import heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

blocks = [b"x" * 200_000 for _ in range(1000)]
held = blocks[-1]  # above the freed ones: the heap cannot simply end sooner
del blocks
before = resident()
heap.trim()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can trim its heap")
def test_what_lies_between_used_blocks_goes_back() -> None:
    settings = {"MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, **settings}, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 150_000_000

"""The jobs folder that a caller means, and the files in it that planning shares."""

from __future__ import annotations

import os
from pathlib import Path


def jobs_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """`given`, else `$RUNNER_JOBS`, else `jobs` in the working folder; it need not exist."""
    return Path(given if given is not None else os.environ.get("RUNNER_JOBS") or "jobs")


def digest_cache(jobs: Path) -> Path:
    """The file in which a store remembers the digests of models and data, and their token counts."""
    return jobs / "store" / "digests.json"

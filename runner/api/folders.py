"""The jobs folder, and the cache of digests in it."""

from __future__ import annotations

import os
from pathlib import Path


def jobs_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Return `given`, else `$RUNNER_JOBS`, else `jobs` in the working folder; it need not exist."""
    return Path(given if given is not None else os.environ.get("RUNNER_JOBS") or "jobs")


def digest_cache(jobs: Path) -> Path:
    """Return the file in which the store caches the digests and token counts of models and data."""
    return jobs / "store" / "digests.json"

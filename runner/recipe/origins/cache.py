"""The user's cache folder of fetched recipes, and whether the network may be used."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def folder(name: str) -> Path:
    """Return a folder of runner's cache; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "runner" / name


FORBIDDEN = "the network is forbidden, by `--offline` or HF_HUB_OFFLINE"


def is_offline() -> bool:
    """Return whether the network must not be used: because of `--offline`, or of the Hub's own variable."""
    names = ("RUNNER_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in names)


def staging(parent: Path) -> Path:
    """Return a new empty folder in `parent`, to be filled and passed to `publish`."""
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".new-", dir=parent))


def publish(staged: Path, target: Path) -> None:
    """Rename a staged folder to its place; if another process was first, its folder stays."""
    try:
        os.rename(staged, target)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        if not target.is_dir():
            raise

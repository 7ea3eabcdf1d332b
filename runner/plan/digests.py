"""The sha256 of files, cached by (path, size, mtime, inode) so that a plan reads a large checkpoint once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_VERSION = 1
_RACY_NS = 2_000_000_000  # a file changed this recently may change again within one tick of its clock


def digest_files(paths: Iterable[Path], cache_file: Path | None) -> dict[Path, str]:
    """Return the sha256 of each file, in hex; with `cache_file` None nothing is cached.

    Processes may share the cache file: it is replaced atomically, so a reader sees one state or the other, and the
    worst that a race costs is hashing a file once more. A cache that cannot be read or written is ignored.
    """
    wanted = list(dict.fromkeys(paths))
    known = load_cache(cache_file)
    result: dict[Path, str] = {}
    fresh: dict[str, Any] = {}
    for path in wanted:
        stat = path.stat()
        identity = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        name = str(path.resolve())
        entry = known.get(name)
        if isinstance(entry, dict) and entry.get("identity") == identity and isinstance(entry.get("sha256"), str):
            result[path] = entry["sha256"]
            continue
        with path.open("rb") as file:
            result[path] = hashlib.file_digest(file, "sha256").hexdigest()
        after = path.stat()
        unchanged = identity == [after.st_size, after.st_mtime_ns, after.st_ino]
        if unchanged and time.time_ns() - stat.st_mtime_ns > _RACY_NS:
            fresh[name] = {"identity": identity, "sha256": result[path]}
    if fresh:
        update_cache(cache_file, fresh)
    return result


def load_cache(cache_file: Path | None) -> dict[str, Any]:
    """Return the entries of a cache file; empty where it is absent or unreadable."""
    if cache_file is None:
        return {}
    try:
        document = json.loads(cache_file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        return {}
    entries = document.get("entries")
    return entries if isinstance(entries, dict) else {}


def update_cache(cache_file: Path | None, fresh: Mapping[str, Any]) -> None:
    """Add entries by replacing the file atomically; where it cannot be written (a read-only folder), do nothing."""
    if cache_file is None:
        return
    document = {"version": _VERSION, "entries": {**load_cache(cache_file), **fresh}}
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{cache_file.name}.", dir=cache_file.parent)
    except OSError:
        return
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, sort_keys=True, indent=1)
        os.replace(temporary, cache_file)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


def digest_named(entries: Mapping[str, str]) -> str:
    """Return one sha256 over names and contents.

    `entries` maps a name to the sha256 of what it names; they are hashed in the order of names.
    """
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(entries.items()))
    return hashlib.sha256(text.encode()).hexdigest()

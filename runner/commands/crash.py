"""Report an unexpected error: write its traceback to a log file, and print one line that names the file."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import runner


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Write the log, print its path, and return the exit code."""
    text = "".join([
        f"runner {runner.__version__}, Python {platform.python_version()}, {platform.platform()}\n",
        f"arguments: {list(arguments)!r}\n",
        f"folder: {_folder()}\n\n",
        *traceback.format_exception(error),
    ])  # fmt: skip
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    print(f"error: runner met an error it did not expect: {what}", file=sys.stderr)
    path = _write(text)
    if path is None:
        print(text, file=sys.stderr)
    else:
        print(f"help: {path} has the traceback; please paste it into a bug report", file=sys.stderr)
    return 1


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:  # the folder was removed, which may be the cause of the crash
        return f"gone ({error.strerror})"


def _write(text: str) -> Path | None:
    """Write the log to the user's cache folder, else the temporary folder; return its path, None if neither works."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "runner"
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (cache, Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return None

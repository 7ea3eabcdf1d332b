"""Task files of lm-evaluation-harness: finding them, the tasks they define, the files that decide their result.

An entry of `tasks` is `demo:NAME`, a path (it holds a `/`, or ends in .yaml) of a task file or of a folder of them, or
else the name of a task of the harness. Imports neither torch nor the harness.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from runner.errors import Diagnostic, RecipeError
from runner.model.source.locate import DEMO, demo_path

SUFFIXES = (".yaml", ".yml")
_HELP = "name a task file (.yaml), a folder of them, `demo:continuation`, or a task of lm-evaluation-harness"


class _Loader(yaml.SafeLoader):
    """Reads `!function utils.f` as text: nothing is imported to plan."""


_Loader.add_constructor("!function", lambda loader, node: f"!function {node.value}")


def locate(entry: str) -> Path | None:
    """Return the file or folder that an entry names; None for the name of a task of the harness.

    Raises RecipeError where nothing is there.
    """
    if entry.startswith(DEMO):
        return demo_path("tasks", entry.removeprefix(DEMO))
    if "/" not in entry and not entry.endswith(SUFFIXES):
        return None
    path = Path(entry).expanduser()
    if not path.exists():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise _error(f"there is no task file or folder `{entry}`{where}", _HELP)
    if path.is_file() and path.suffix not in SUFFIXES:
        raise _error(f"`{entry}` is no task file: its suffix is `{path.suffix}`", _HELP)
    return path.resolve()


def definitions(path: Path) -> dict[str, Path]:
    """Return task name → the file that defines it, for a task file or for all of a folder.

    Raises RecipeError where there is none.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    found: dict[str, Path] = {}
    for file in files:
        name = _read(file).get("task")
        if isinstance(name, str):
            if name in found:
                raise _error(f"`{file}` and `{found[name]}` both define the task `{name}`", "rename one of them")
            found[name] = file
        elif path.is_file():
            raise _error(f"`{file}` defines no task: it has no text `task`", "write `task: NAME` into it")
    if not found:
        raise _error(f"`{path}` holds no task file: no .yaml file with a text `task`", _HELP)
    return found


def members(path: Path) -> list[Path]:
    """Return the files that decide what a task does: all in its folder, as any of them may be its data or code."""
    folder = path if path.is_dir() else path.parent
    hidden = ("__pycache__", ".")
    inside = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in inside if not any(part.startswith(hidden) for part in p.relative_to(folder).parts))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = yaml.load(path.read_text("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise _error(f"the task file `{path}` cannot be read: {reason}") from None
    if not isinstance(found, dict):
        raise _error(f"the task file `{path}` must be a mapping", "write `task: NAME`, `dataset_path: ...`")
    return found


def _error(message: str, help: str | None = None) -> RecipeError:
    return RecipeError([Diagnostic("R469", message, help)])

"""Finds the schema and the module of every step kind, without importing anything heavy.

A kind is, in this order of search,
- built in: `schemas/steps/<family>.<method>.schema.json` and the module `runner.steps.<family>.<method>`;
- in a folder of the environment variable RUNNER_STEPS_PATH: `<family>/<method>.py` and
  `<family>.<method>.schema.json` (several folders are separated as in PATH);
- of an installed package, by the entry-point group `runner.steps`: name = kind, value = module; its schema is the file
  that the module's SCHEMA names, or `<module file without .py>.schema.json` in its folder.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from runner.errors import MachineError, UsageError

ENVIRONMENT_VARIABLE = "RUNNER_STEPS_PATH"
GROUP = "runner.steps"
SUFFIX = ".schema.json"
_FOLDERS_PACKAGE = "runner_steps_path"


@dataclass(frozen=True)
class Source:
    """A kind's module name, the file of its schema (None: named by the module), and the package that brings it."""

    kind: str
    module: str
    schema: Path | None
    origin: str


@functools.cache
def schemas_folder() -> Path:
    """Return the folder of the schemas: inside an installed wheel, or next to the package in a checkout."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "_data" / "schemas", package.parent / "schemas"):
        if (folder / "core.schema.json").is_file():
            return folder
    raise MachineError("the schemas of this installation are missing", "install runner again")


def find(kind: str) -> Source | None:
    """Return the source of `kind`, or None.

    Installed packages are only searched for a kind found nowhere else.
    """
    return builtin().get(kind) or _in_folders(_folders()).get(kind) or _installed().get(kind)


def kinds() -> tuple[str, ...]:
    """Return every kind, sorted."""
    return tuple(sorted({*builtin(), *_in_folders(_folders()), *_installed()}))


@functools.cache
def builtin() -> dict[str, Source]:
    files = sorted((schemas_folder() / "steps").glob(f"*{SUFFIX}"))
    names = [file.name.removesuffix(SUFFIX) for file in files]
    return {name: Source(name, f"runner.steps.{name}", file, "runner") for name, file in zip(names, files, strict=True)}


def _folders() -> tuple[Path, ...]:
    written = os.environ.get(ENVIRONMENT_VARIABLE, "")
    return tuple(Path(part).expanduser().resolve() for part in written.split(os.pathsep) if part)


@functools.cache
def _in_folders(folders: tuple[Path, ...]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{ENVIRONMENT_VARIABLE} names {folder}, which is not a folder")
        for file in sorted(folder.glob("*/*.py")):
            kind = f"{file.parent.name}.{file.stem}"
            schema = folder / f"{kind}{SUFFIX}"
            if schema.is_file() and kind not in found and kind not in builtin():
                found[kind] = Source(kind, f"{_FOLDERS_PACKAGE}.{kind}", schema, str(folder))
    return found


@functools.cache
def _installed() -> dict[str, Source]:
    from importlib.metadata import entry_points

    found: dict[str, Source] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        package = entry.dist.name if entry.dist is not None else entry.module
        if entry.name in builtin() or entry.name in found:
            continue
        found[entry.name] = Source(entry.name, entry.module, _schema_of_module(entry.module), package)
    return found


def _schema_of_module(module: str) -> Path | None:
    """Return the schema in the folder of a module, found without running the module; None where there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None
    if spec is None or spec.origin is None:
        return None
    schema = Path(spec.origin).with_suffix(SUFFIX)
    return schema if schema.is_file() else None


def schema_file(source: Source) -> Path:
    """Return the file of a kind's schema. Raises MachineError where a package brings none."""
    if source.schema is not None:
        return source.schema
    python = load(source)
    named = getattr(python, "SCHEMA", None)
    base = Path(python.__file__).parent if python.__file__ else Path()
    if named is not None and (base / named).is_file():
        return base / str(named)
    raise MachineError(
        f"step kind `{source.kind}` of {source.origin} has no schema",
        f"put {source.module.rsplit('.', 1)[-1]}{SUFFIX} next to its module, or name a file in SCHEMA",
    )


def module(kind: str) -> ModuleType:
    """Return the module of a kind.

    Raises UsageError for an unknown kind, MachineError for one that cannot be imported.
    """
    source = find(kind)
    if source is None:
        raise UsageError(f"unknown step kind `{kind}`", "`runner steps` lists every kind")
    return load(source)


def load(source: Source) -> ModuleType:
    """Import the module of a kind. Raises MachineError where that fails."""
    if source.module.startswith(_FOLDERS_PACKAGE + "."):
        _mount(_folders())
    try:
        return importlib.import_module(source.module)
    except (ImportError, SyntaxError) as error:
        raise MachineError(
            f"step kind `{source.kind}` of {source.origin} cannot be imported: {error}",
            "`runner doctor` lists what this installation lacks",
        ) from error


def _mount(folders: tuple[Path, ...]) -> None:
    """Make the folders of RUNNER_STEPS_PATH one importable package, so that their modules may import one another."""
    paths = [str(folder) for folder in folders]
    present = sys.modules.get(_FOLDERS_PACKAGE)
    if present is not None and list(present.__path__) == paths:
        return
    for name in [name for name in sys.modules if name.startswith(_FOLDERS_PACKAGE + ".")]:
        del sys.modules[name]
    package = ModuleType(_FOLDERS_PACKAGE)
    package.__path__ = paths
    sys.modules[_FOLDERS_PACKAGE] = package
    importlib.invalidate_caches()

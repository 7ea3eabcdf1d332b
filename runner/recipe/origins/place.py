"""Where a recipe can be: the shape that all places share, and files of this machine.

A place names itself as complaints show it, reads its text, and finds what lies beside it. What comes from elsewhere (a
pack, a repository, a URL) may only reach what came with it, or another place that is not this machine's own.
"""

from __future__ import annotations

import difflib
import os
import posixpath
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runner.recipe.syntax import yaml_text
from runner.recipe.types import Parent

LARGEST = 2**20  # bytes of a recipe
SUFFIXES = (".yaml", ".yml")


class PlaceError(Exception):
    """Why a recipe cannot be had: the code of the complaint, what is wrong, and the remedy."""

    def __init__(self, code: str, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.help = code, message, help


class Place(Protocol):
    """`name` is what complaints call it; places of equal `identity` hold the same recipe; `local`: on this machine."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def local(self) -> bool: ...

    def read(self) -> str:
        """The text of the recipe. Raises PlaceError; RecipeError where it is not UTF-8."""
        ...

    def sibling(self, path: str) -> Place:
        """The recipe at a path relative to this one. Raises PlaceError where that leaves what came with this one."""
        ...

    def pin(self, content: str) -> Parent | None:
        """What a lock keeps of it; None of a file of this machine."""
        ...


@dataclass(frozen=True)
class FilePlace:
    """A recipe in a file of this machine; `parent`: another recipe names it, and may not make us wait for a pipe."""

    file: str
    code: str = "R120"
    parent: bool = False

    @property
    def name(self) -> str:
        return self.file

    @property
    def identity(self) -> str:
        return os.path.realpath(self.file)

    @property
    def local(self) -> bool:
        return True

    def read(self) -> str:
        try:
            if self.parent and not stat.S_ISREG(mode := os.stat(self.file).st_mode) and not stat.S_ISDIR(mode):
                raise PlaceError(self.code, f"cannot read `{self.file}`: it is no regular file")
            with open(self.file, "rb") as file:
                return decode(file.read(LARGEST + 1), self.file, self.code)
        except OSError as error:
            problem = error.strerror or str(error)
            raise PlaceError(self.code, f"cannot read `{self.file}`: {problem}", _similar(self.file)) from None
        except ValueError as error:  # a null byte in the path
            raise PlaceError(self.code, f"cannot read `{self.file!r}`: {error}") from None

    def sibling(self, path: str) -> FilePlace:
        return FilePlace(os.path.normpath(os.path.join(os.path.dirname(self.file), path)), parent=True)

    def pin(self, content: str) -> None:
        return None


def inside(folder: str, path: str, whole: str) -> str:
    """`path`, relative to `folder`, as a path of the tree that both are in; PlaceError where it leaves that tree."""
    joined = posixpath.normpath(posixpath.join(folder, path))
    if path.startswith("/") or "\\" in path or "\0" in path or joined == ".." or joined.startswith("../"):
        message = f"`{path}` leads out of {whole}"
        raise PlaceError("R126", message, "a recipe from elsewhere extends only what came with it, or names it by URL")
    return joined


def decode(data: bytes, name: str, code: str) -> str:
    """The text of a recipe. PlaceError where there is more of it than a recipe has."""
    if len(data) > LARGEST:
        raise PlaceError(code, f"`{name}` is larger than {LARGEST // 2**20} MiB, which no recipe is")
    return yaml_text.decode(data, name)


def _similar(file: str) -> str | None:
    path = Path(file)
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in SUFFIXES)
    except OSError:
        return None
    found = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean `{path.parent / found[0]}`?" if found else None

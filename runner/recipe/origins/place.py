"""Places of recipes: the protocol that all places meet, and files of this machine.

A place has a name for complaints, reads its text, and finds recipes relative to it. A recipe from elsewhere (a pack, a
repository, a URL) may only extend recipes that came with it, or from another place that is not this machine.
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
    """A recipe cannot be read: the code of the complaint, what is wrong, and the remedy."""

    def __init__(self, code: str, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.help = code, message, help


class Place(Protocol):
    """A place of a recipe: its `name` in complaints, its `identity`, and whether it is on this machine (`local`)."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def local(self) -> bool: ...

    def read(self) -> str:
        """Return the text of the recipe. Raises PlaceError, or RecipeError where it is not UTF-8."""
        ...

    def sibling(self, path: str) -> Place:
        """Return the recipe at a path relative to this one.

        Raises PlaceError where the path leaves the files that came with this one.
        """
        ...

    def pin(self, content: str) -> Parent | None:
        """Return its entry in a lock; None for a file of this machine."""
        ...


@dataclass(frozen=True)
class FilePlace:
    """A recipe in a file of this machine; with `parent` another recipe names it, and it must be a regular file."""

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


def inside(folder: str, path: str, tree: str) -> str:
    """Return `path`, relative to `folder`, as a path in the tree that holds both.

    Raises PlaceError, with `tree` as its name, where the path leaves it.
    """
    joined = posixpath.normpath(posixpath.join(folder, path))
    if path.startswith("/") or "\\" in path or "\0" in path or joined == ".." or joined.startswith("../"):
        message = f"`{path}` leads out of {tree}"
        raise PlaceError("R126", message, "a recipe from elsewhere extends only what came with it, or names it by URL")
    return joined


def decode(data: bytes, name: str, code: str) -> str:
    """Return the text of a recipe. Raises PlaceError where it is too large for a recipe."""
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

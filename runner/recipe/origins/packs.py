"""Recipe packs: installed packages that bring recipes, named by the entry-point group `runner.recipes`.

    [project.entry-points."runner.recipes"]
    acme = "acme_recipes"               pack:acme/llama/int4 is llama/int4.yaml in the folder of that package

Nothing of a package is imported, so that its code does not run: its folder is found along sys.path, name by name.
The recipes that come with runner itself are the pack `runner`.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import runner
from runner import wording
from runner.recipe.origins.place import SUFFIXES, PlaceError, decode, inside
from runner.recipe.schema import kinds
from runner.recipe.types import Parent

SCHEME = "pack:"
GROUP = "runner.recipes"
OWN = "runner"
_ADDRESS = re.compile(r"pack:([A-Za-z0-9][\w.-]*)/([^#?]+)")
_PART = re.compile(r"[A-Za-z0-9_][\w.-]*")


@dataclass(frozen=True)
class Pack:
    """An installed pack: its folder, and the package that brings it, such as `acme-recipes 1.2.0`.

    A pack that is still being built is `open`: its recipes are named by their files.
    """

    name: str
    folder: Path
    package: str
    open: bool = False

    def address(self, recipe: str) -> str:
        return f"{SCHEME}{self.name}/{recipe}"

    def recipes(self) -> list[str]:
        """Return the names by which its recipes can be extended."""
        return recipes_in(self.folder)


@dataclass(frozen=True)
class PackPlace:
    """A recipe of a pack; `path` is that of its file in the pack's folder."""

    pack: Pack
    path: str

    @property
    def name(self) -> str:
        return str(self.pack.folder / self.path) if self.pack.open else self.address

    @property
    def address(self) -> str:
        return self.pack.address(_stem(self.path))

    @property
    def identity(self) -> str:
        return self.address

    @property
    def local(self) -> bool:
        return False

    def read(self) -> str:
        file = self.pack.folder / self.path
        if file.exists() and not file.resolve().is_relative_to(self.pack.folder.resolve()):
            message = f"`{self.name}` is a link out of the folder of the pack"
            raise PlaceError("R126", message, "a recipe from elsewhere extends only what came with it")
        try:
            return decode(file.read_bytes(), self.name, "R123")
        except OSError:
            known = self.pack.recipes()
            meant = wording.did_you_mean(_stem(self.path), known)
            message = f"the pack `{self.pack.name}` ({self.pack.package}) holds no recipe `{_stem(self.path)}`{meant}"
            raise PlaceError("R123", message, f"it holds {wording.ticked(known)}" if known else None) from None

    def sibling(self, path: str) -> PackPlace:
        return PackPlace(self.pack, inside(os.path.dirname(self.path), path, f"the pack `{self.pack.name}`"))

    def pin(self, content: str) -> Parent:
        return Parent(self.name, hashlib.sha256(content.encode()).hexdigest(), package=self.pack.package)


def place(written: str) -> PackPlace:
    """Return the place that `pack:NAME/RECIPE` names. Raises PlaceError."""
    match = _ADDRESS.fullmatch(written)
    if match is None or not all(_PART.fullmatch(part) for part in match[2].split("/")):
        raise PlaceError("R122", f"`{written}` is not the address of a pack's recipe", "write `pack:NAME/RECIPE`")
    path = match[2] if match[2].endswith(SUFFIXES) else f"{match[2]}.yaml"
    return PackPlace(find(match[1]), path)


def find(name: str) -> Pack:
    """Return the installed pack of that name. Raises PlaceError where there is none, or two packages bring it."""
    if name == OWN:
        return own()
    from importlib.metadata import entry_points

    entries = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    known = list(dict.fromkeys([*(entry.name for entry in entries), OWN]))
    found = {(entry.value, _package(entry.dist)): entry for entry in entries if entry.name == name}
    if not found:
        message = f"no installed package brings the recipe pack `{name}`{wording.did_you_mean(name, known)}"
        help = f"`pip install` the package that brings it; installed are {wording.ticked(known)}"
        raise PlaceError("R123", message, help)
    if len(found) > 1:
        both = wording.ticked(sorted(package for _, package in found))
        raise PlaceError("R123", f"the recipe pack `{name}` is brought by {both}", "`pip uninstall` one of them")
    ((value, package),) = found
    folder = _folder(value.partition(":")[0].strip())
    if folder is None:
        message = f"the pack `{name}` of {package} is declared to be in `{value}`, and there is no such folder"
        raise PlaceError("R123", message, "install the package again")
    return Pack(name, folder, package)


def own() -> Pack:
    """Return the pack of recipes that come with runner: in the wheel, or in the checkout."""
    return Pack(OWN, kinds.schemas_folder().with_name("recipes"), f"runner {runner.__version__}")


def recipes_in(folder: Path) -> list[str]:
    """Return the names of the recipes of a folder: their paths in it without the suffix, sorted."""
    files = (path for suffix in SUFFIXES for path in folder.rglob(f"*{suffix}"))
    return sorted(_stem(path.relative_to(folder).as_posix()) for path in files if _is_own(path, folder))


def _is_own(path: Path, folder: Path) -> bool:
    """Return whether a path is a file in the folder, not a link out of it."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _stem(path: str) -> str:
    """Return a recipe's name: its path without the usual suffix."""
    return path.removesuffix(SUFFIXES[0])


def _package(distribution: object) -> str:
    name, version = getattr(distribution, "name", None), getattr(distribution, "version", None)
    return f"{name} {version}" if name else "an unnamed package"


def _folder(module: str) -> Path | None:
    """Return the folder of a package, found along sys.path without importing it or the packages around it."""
    first, *inner = module.split(".")
    spec = importlib.machinery.PathFinder.find_spec(first, sys.path)
    locations = spec.submodule_search_locations if spec is not None else None
    folders = (Path(location, *inner) for location in locations or ())
    return next((folder for folder in folders if folder.is_dir()), None)

"""Builds a wheel from a folder of recipes: only YAML files and metadata, so that nothing in it can run.

The wheel is written here, by the rules of PEP 427: building needs no network and no build backend, and the same recipes
give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import Diagnostic, RecipeError
from runner.recipe import load
from runner.recipe.origins import packs
from runner.recipe.origins.packs import Pack, PackPlace
from runner.recipe.origins.place import SUFFIXES, PlaceError
from runner.recipe.schema import kinds
from runner.recipe.types import Recipe

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?")
_PATH = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every file in the wheel


@dataclass(frozen=True)
class Contents:
    """The content of a pack: files by their paths in it, the recipes in them, requirements and notes for the user."""

    files: Mapping[str, bytes]
    recipes: Mapping[str, Sequence[Recipe]]
    requires: tuple[str, ...]
    notes: tuple[str, ...]


def collect(folder: Path, name: str) -> Contents:
    """Return the recipes of a folder, checked as those of an installed pack are.

    Raises RecipeError with all complaints.
    """
    pack = Pack(name, folder, f"the folder {folder}", open=True)
    files: dict[str, bytes] = {}
    recipes: dict[str, Sequence[Recipe]] = {}
    complaints: list[Diagnostic] = []
    for path in sorted(p for suffix in SUFFIXES for p in folder.rglob(f"*{suffix}")):
        inner = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in inner.split("/")):
            continue
        if not _PATH.fullmatch(inner):
            message = f"`{path}` cannot be named by `pack:{name}/...`"
            complaints.append(Diagnostic("R123", message, "use letters, digits, `_`, `-` and `.` in names"))
            continue
        place = PackPlace(pack, inner)
        try:
            text = place.read()
            recipes[inner] = load.loads_all(text, str(path), place=place)
            files[inner] = path.read_bytes()
        except PlaceError as error:
            complaints.append(Diagnostic(error.code, error.message, error.help))
        except RecipeError as error:
            complaints += error.diagnostics
    if complaints:
        raise RecipeError(complaints)
    if (readme := folder / "README.md").is_file() and files:
        files["README.md"] = readme.read_bytes()
    requires, notes = _needs(recipes)
    return Contents(files, recipes, requires, notes)


def _needs(recipes: Mapping[str, Sequence[Recipe]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the packages whose kinds the recipes use, and notes on what they use that no package brings."""
    requires, notes = set(), []
    for inner, several in recipes.items():
        for kind in sorted({step.kind for recipe in several for step in recipe.steps}):
            origin = getattr(kinds.find(kind), "origin", "runner")
            if "/" in origin or "\\" in origin:
                notes.append(f"{inner} uses `{kind}`, a kind of this machine alone ({kinds.ENVIRONMENT_VARIABLE})")
            elif origin != "runner":
                requires.add(origin)
        sources = {recipe.model.source for recipe in several}
        sources |= {entry.source for recipe in several for entry in recipe.data.values()}
        notes += [f"{inner} names `{source}` of this machine" for source in sorted(sources) if Path(source).exists()]
    return tuple(sorted(requires)), tuple(notes)


def build(contents: Contents, name: str, version: str) -> tuple[str, bytes]:
    """Return (file name, bytes) of the wheel of a pack."""
    distribution = f"{name}-recipes"
    module = distribution.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    members = {f"{module}/{path}": data for path, data in contents.files.items()}
    members[f"{info}/METADATA"] = _metadata(contents, name, distribution, version).encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: runner\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/entry_points.txt"] = f"[{packs.GROUP}]\n{name} = {module}\n".encode()
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in members.items())
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in members.items():
            member = zipfile.ZipInfo(path, _EPOCH)
            member.external_attr = 0o644 << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, data)
    return f"{module}-{version}-py3-none-any.whl", buffer.getvalue()


def _metadata(contents: Contents, name: str, distribution: str, version: str) -> str:
    named = [packs.PackPlace(Pack(name, Path(), ""), inner).name for inner in contents.recipes]
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
    lines += [f"Summary: Recipes for runner: {', '.join(named)}"]
    lines += [f"Requires-Dist: {package}" for package in contents.requires]
    readme = contents.files.get("README.md")
    if readme is None:
        return "\n".join(lines) + "\n"
    text = readme.decode("utf-8", "replace")
    return "\n".join([*lines, "Description-Content-Type: text/markdown", "", text])


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

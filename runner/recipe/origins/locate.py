"""Finds the place of the recipe that `extends` names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from runner.recipe.origins import git, packs, url
from runner.recipe.origins.place import Place, PlaceError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCP = re.compile(r"[\w.-]+@[\w.-]+:(?!//)")
_HELP = (
    "write a path relative to this file, `pack:NAME/RECIPE`, `git+https://HOST/REPOSITORY@COMMIT-OR-TAG#PATH`, "
    "or a URL of https, s3, gs, hf or file"
)


@dataclass(frozen=True)
class Pins:
    """The parents in a lock: address → commit of those from git, address → digest of all."""

    commits: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def locate(written: object, at: Place, pins: Pins) -> Place:
    """Return the place that the value of `extends` in the recipe `at` names. Raises PlaceError."""
    if not isinstance(written, str) or not written.strip() or "${" in written or "\0" in written:
        raise PlaceError("R122", "`extends` names a recipe; this names none", _HELP)
    if written.startswith(packs.SCHEME):
        return packs.place(written)
    if _SCP.match(written):
        user_host, _, path = written.partition(":")
        help = f"write `git+ssh://{user_host}/{path.partition('@')[0]}@COMMIT-OR-TAG#path/to/recipe.yaml`"
        raise PlaceError("R122", "`extends` names a repository in the form of scp", help)
    match = _SCHEME.match(written)
    if match is None and ("::" in written or written.startswith("git+")):
        raise PlaceError("R122", f"`{written}` is no place that a recipe can be at", _HELP)
    if match is None:
        return at.sibling(written)
    if written.startswith(("git+file:", "file:", "local:")) and not at.local:
        message = f"a recipe from elsewhere names `{written}`, a file of this machine"
        raise PlaceError("R126", message, "a recipe from elsewhere extends only what came with it, or a remote place")
    if match[1].startswith("git+"):
        return git.place(written, pins.commits)
    if written.split("#")[0].endswith(".git") or written.startswith("ssh://"):
        raise PlaceError("R122", f"`{written}` is a repository, not a recipe", f"write {git.FORM}")
    return url.place(written, pins.digests.get(written))

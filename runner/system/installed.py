"""Names and versions of installed packages.

importlib's own properties parse all of a package's metadata, its long description too, with the standard library's
reader of e-mails, and again for each property: some 8 ms where reading the first lines takes a tenth of one.
"""

from __future__ import annotations

import importlib.metadata
import re

_NAME, _VERSION = re.compile(r"^Name: *(.+?) *$", re.MULTILINE), re.compile(r"^Version: *(.+?) *$", re.MULTILINE)


def version(package: str) -> str | None:
    """Return the version of an installed package, without importing it; None where it is not installed."""
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    own = _name_and_version(found)
    return own[1] if own is not None else None


def versions() -> dict[str, str]:
    """Return every installed package with its version, sorted by name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        own = _name_and_version(distribution)
        if own is not None:  # a half-removed package has none
            found.setdefault(own[0].lower().replace("_", "-"), own[1])  # the first on sys.path is imported
    return dict(sorted(found.items()))


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str] | None:
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    head = text.partition("\n\n")[0]
    name, own = _NAME.search(head), _VERSION.search(head)
    return (name[1], own[1]) if name and own else None

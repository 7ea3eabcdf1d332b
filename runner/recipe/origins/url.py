"""Recipes at URLs: https and http by the standard library, everything else (file, s3, gs, hf, ...) by fsspec.

Texts are cached by their digest, so that a recipe whose lock pins the digest can be read without a network. Where the
network works, its text is used: a URL has no history to go back to.
"""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from runner.recipe.origins import cache
from runner.recipe.origins.place import LARGEST, PlaceError, decode, inside
from runner.recipe.types import Parent

_WEB = ("http", "https")
# Schemes that refer to another place, which the checks would not see.
_INDIRECT = frozenset({
    "asyncwrapper", "blockcache", "cached", "dask", "data", "dir", "filecache", "generic", "git", "jlab", "jupyter",
    "libarchive", "local", "reference", "simplecache", "tar", "zip",
})  # fmt: skip
_SECONDS = 30


@dataclass(frozen=True)
class UrlPlace:
    """A recipe at a URL; `pinned` is the digest that a lock gives it."""

    url: str
    pinned: str | None = None

    @property
    def name(self) -> str:
        return self.url

    @property
    def identity(self) -> str:
        return self.url

    @property
    def local(self) -> bool:
        return self.url.startswith("file:")

    def read(self) -> str:
        try:
            data = _fetched(self.url)
        except PlaceError:
            cached = cache.folder("recipes") / (self.pinned or "none")
            if self.pinned is None or not cached.is_file():
                raise
            data = cached.read_bytes()
        content = decode(data, self.url, "R125")
        if not self.local:
            _store(content.encode())
        return content

    def sibling(self, path: str) -> UrlPlace:
        parts = urlsplit(self.url)
        folder = posixpath.dirname(parts.path).lstrip("/")
        inner = inside(folder, path, f"{parts.scheme}://{parts.netloc}")
        return UrlPlace(urlunsplit((parts.scheme, parts.netloc, f"/{inner}", "", "")))

    def pin(self, content: str) -> Parent:
        return Parent(self.url, hashlib.sha256(content.encode()).hexdigest())


def place(written: str, pinned: str | None) -> UrlPlace:
    """Return the place that a URL names. Raises PlaceError where no recipe can be there."""
    parts = urlsplit(written)
    if parts.scheme in _INDIRECT or "::" in written:
        message = f"`{written}` stands for another place"
        raise PlaceError("R122", message, "write the URL of the recipe itself")
    if parts.password is not None:
        message = "the URL holds a password, which complaints and locks would show"
        raise PlaceError("R122", message, "leave it out; set the credentials as fsspec's backend reads them")
    return UrlPlace(written, pinned)


def _fetched(url: str) -> bytes:
    """Return the bytes at a URL, at most one more than a recipe may have."""
    scheme = urlsplit(url).scheme
    if cache.is_offline() and scheme not in ("file", "memory"):
        message = f"`{url}` cannot be read: {cache.FORBIDDEN}"
        raise PlaceError("R125", message, "a lock, with the recipe in the cache, needs no network")
    return _from_web(url) if scheme in _WEB else _from_fsspec(url, scheme)


def _from_web(url: str) -> bytes:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=_SECONDS) as answer:  # follows redirects to http and https alone
            data: bytes = answer.read(LARGEST + 1)
            return data
    except HTTPError as error:
        error.close()
        help = "check the URL; for a page that asks for a login, use git or a store with credentials"
        raise PlaceError("R125", f"`{url}` cannot be read: {error.code} {error.reason}", help) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise PlaceError("R125", f"`{url}` cannot be read: {reason}", "check the URL and the network") from None


def _from_fsspec(url: str, scheme: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read(LARGEST + 1)
            return data
    except ImportError as error:
        raise PlaceError("R125", f"`{url}` needs a package that is not installed", _remedy(scheme, error)) from None
    except FileNotFoundError:
        raise PlaceError("R125", f"`{url}` is not there", "check the URL") from None
    except ValueError as error:
        if "rotocol not known" in str(error):
            help = "write a path, `pack:NAME/RECIPE`, `git+https://...@REF#PATH`, or a URL of https, s3, gs, hf or file"
            raise PlaceError("R122", f"`{scheme}://` is no place that fsspec knows", help) from None
        raise PlaceError("R125", f"`{url}` cannot be read: {error}", "check the URL") from None
    except Exception as error:  # noqa: BLE001  # each backend has exceptions of its own, with no common base
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PlaceError(
            "R125", f"`{url}` cannot be read: {why}", "check the URL, the network and your access"
        ) from None


def _remedy(scheme: str, error: ImportError) -> str:
    package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs",
               "abfs": "adlfs", "sftp": "paramiko", "ssh": "paramiko"}.get(scheme)  # fmt: skip
    return f"`pip install {package}`" if package else str(error)


def _store(data: bytes) -> None:
    """Store a text in the cache by its digest; do nothing where the cache cannot be written."""
    target = cache.folder("recipes") / hashlib.sha256(data).hexdigest()
    if target.is_file():
        return
    try:
        staged = cache.staging(target.parent)
        (staged / target.name).write_bytes(data)
        (staged / target.name).replace(target)
        staged.rmdir()
    except OSError:
        return

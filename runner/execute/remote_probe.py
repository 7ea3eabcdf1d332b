"""Whether other machines use the remote store that this one uses: asked before anything runs, not after hours."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import RunnerError
from runner.job.remote import Remote

_FOLDER = "probes"


@contextmanager
def left(url: str) -> Iterator[str]:
    """Leave a small file in a remote store for as long as other machines look for it; yield its name.

    Raises StoreError where this machine cannot write there, and the errors of `Remote`.
    """
    remote = Remote(url)
    name = f"{_FOLDER}/{secrets.token_hex(8)}"
    remote.write(name, b"runner\n")
    try:
        yield name
    finally:
        remote.remove(name)


def fault(url: str, name: str) -> str | None:
    """Return why this machine cannot use a remote store in which another one left a file; None where it can."""
    try:
        remote = Remote(url)
        if remote.content(name) is None:
            return f"{url} is another store there"
        own = f"{name}.{secrets.token_hex(8)}"
        remote.write(own, b"runner\n")
        remote.remove(own)
    except RunnerError as error:
        return error.message
    return None

"""A remote store, shared by CI and colleagues: any place that fsspec reads and writes (file, s3, gs, az, ...).

    <url>/records/<key>.json          the sealed record of a step: written last, all at once
    <url>/blobs/<ab>/<sha256>         every file of out/, under the hash of its bytes
    <url>/claims/<key>/               who computes a step now (runner.job.claims)

An entry exists when its record does. Blobs are named by their content, so an interrupted push leaves nothing that could
be taken for an entry, the next push uploads what is missing, and two writers write the same. Everything that is pulled
is verified: the seal and the key of the record, that no path leads outside of the entry, and the hash of every file.
Logs are not pushed: they are no part of a result.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from runner.errors import MachineError, StoreError, UsageError
from runner.job import files, record_checks, records
from runner.job.entries import Stage, StoreEntry
from runner.job.records import FileFact, Record
from runner.job.store import Store

# These publish an object atomically; elsewhere a file is written under a temporary name and moved.
_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "memory"})
_BLOCK = 8 * 2**20
_LARGEST_RECORD = 256 * 2**20
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Refused(StoreError):
    """Report an entry whose record or files are not valid."""


class Remote:
    """A remote store at `url`. Opens no connection before it is used."""

    def __init__(self, url: str) -> None:
        self.url = url if "://" in url else f"file://{os.path.abspath(url)}"
        parts = urlsplit(self.url)
        self.protocol = parts.scheme
        if parts.password is not None:
            raise UsageError(
                "the URL of the remote store holds a password, which records would show",
                "leave it out; set the credentials as fsspec's backend reads them",
            )
        if os.environ.get("RUNNER_OFFLINE") == "1" and self.protocol not in ("file", "local", "memory"):
            raise UsageError(f"the remote store {self.url} needs a network, and --offline forbids it", "leave out one")
        self._found: tuple[Any, str] | None = None
        self._there: set[str] = set()  # keys of entries that were found or pushed: many jobs may have the same step

    def _system(self) -> tuple[Any, str]:
        """Return the file system and the path of the store in it."""
        if self._found is None:
            import fsspec

            try:
                system, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
            except ImportError as error:
                package = _PACKAGES.get(self.protocol, "the package that fsspec names")
                raise MachineError(
                    f"the remote store {self.url} cannot be opened: {error}", f"`pip install {package}`"
                ) from error
            except ValueError as error:
                raise UsageError(
                    f"the remote store {self.url} cannot be opened: {error}", "write a URL such as s3://bucket/store"
                ) from error
            self._found = (system, path.rstrip("/"))
        return self._found

    def keys(self) -> list[str]:
        """Return the keys of all entries, sorted."""
        found = (name.removesuffix(".json") for name in self.names("records") if name.endswith(".json"))
        return [name for name in found if record_checks.is_key(name)]

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder of the store, sorted."""
        system, root = self._system()
        try:
            listed = system.ls(f"{root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._failed(error) from error
        return sorted(name for path in listed if (name := PurePosixPath(str(path)).name)[:1] != ".")

    def content(self, name: str) -> bytes | None:
        """Return the bytes of a small file; None where there is none."""
        system, root = self._system()
        try:
            data: bytes = system.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(error) from error
        return data

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        system, root = self._system()
        try:
            system.rm_file(f"{root}/{name}")
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._failed(error) from error

    def has(self, key: str) -> bool:
        system, root = self._system()
        try:
            found = bool(system.exists(f"{root}/records/{key}.json"))
        except Exception as error:
            raise self._failed(error) from error
        if found:
            self._there.add(key)
        return found

    def push(self, entry: StoreEntry, *, replace: bool = False) -> int:
        """Upload a verified entry and return the bytes sent. An entry or files that exist already are not sent again.

        With `replace` all of it is sent again: the remedy for a refused entry.
        """
        key = entry.record.key
        if not replace and (key in self._there or self.has(key)):
            return 0
        sent = 0
        for fact in entry.record.files:
            sent += self._put_blob(entry.out / fact.path, fact, replace)
        text = (entry.path / "record.json").read_text(encoding="utf-8")
        self.write(f"records/{key}.json", text.encode())
        self._there.add(key)
        return sent

    def pull(self, key: str, store: Store, *, wait: bool = True) -> StoreEntry | None:
        """Fetch an entry into `store`; None if it is missing, or if its lock is held and `wait` is False.

        Refused, naming what differs, for an entry that is not valid: nothing of it is published. What an interrupted
        pull fetched is not fetched again.
        """
        if not self.has(key):
            return None
        lock = store.lock(key, f"pulling from {self.url}")
        if not lock.acquire(wait=wait):
            return None
        try:
            found = store.entry_locked(key)
            if found is not None:
                return found
            record, text = self._record(key)
            stage = Stage(key, store.root / ".staging" / f"{key}.pull")
            stage.out.mkdir(parents=True, exist_ok=True)
            self._fetch(record, stage)
            files.write_atomic(stage.path / "metrics.json", files.pretty(dict(record.metrics)))
            files.write_atomic(stage.path / "record.json", text)
            entry = store.adopt(stage)
            store.discard(key)  # the partial result of an interrupted run is not needed now
            return entry
        finally:
            lock.release()

    def check(self, key: str) -> Record:
        """Return the verified record of an entry. Errors are those of `pull`."""
        return self._record(key)[0]

    def _record(self, key: str) -> tuple[Record, str]:
        data = b"".join(self._read(f"records/{key}.json", key, limit=_LARGEST_RECORD))
        try:
            text = data.decode("utf-8")
            record = records.parse(text)
        except UnicodeDecodeError:
            raise self._refused(key, "its record is not UTF-8") from None
        except ValueError as error:
            raise self._refused(key, f"its record {error}") from None
        if (reason := record_checks.fault(record, key)) is not None:
            raise self._refused(key, reason)
        return record, text

    def _fetch(self, record: Record, stage: Stage) -> None:
        """Fetch every file of a record into the stage's out/, and remove other files there."""
        wanted = {fact.path for fact in record.files}
        for path in list(files.walk(stage.out)):
            if path.relative_to(stage.out).as_posix() not in wanted:
                path.unlink()
        for fact in record.files:
            target = stage.out / fact.path
            if not (target.is_file() and target.stat().st_size == fact.size and files.sha256(target) == fact.sha256):
                self._fetch_file(record.key, fact, target)
            os.utime(target, ns=(fact.mtime_ns, fact.mtime_ns))

    def _fetch_file(self, key: str, fact: FileFact, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        hashed, size = hashlib.sha256(), 0
        try:
            with open(part, "wb") as file:
                for block in self._read(_blob(fact.sha256), key, limit=fact.size):
                    hashed.update(block)
                    size += len(block)
                    file.write(block)
            if size != fact.size:
                raise self._refused(key, f"out/{fact.path} has {size} bytes, its record says {fact.size}")
            if hashed.hexdigest() != fact.sha256:
                raise self._refused(key, f"out/{fact.path} has other bytes than its record says")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def _read(self, path: str, key: str, limit: int) -> Iterator[bytes]:
        """Yield the bytes of a remote file; at most a block beyond `limit`."""
        system, root = self._system()
        taken = 0
        try:
            with system.open(f"{root}/{path}", "rb") as file:
                while taken <= limit and (block := file.read(_BLOCK)):
                    taken += len(block)
                    yield block
        except FileNotFoundError:
            raise self._refused(key, f"{path} is missing") from None
        except Exception as error:  # what a backend raises is not always an OSError
            raise self._failed(error) from error

    def _put_blob(self, source: Path, fact: FileFact, replace: bool) -> int:
        system, root = self._system()
        path = f"{root}/{_blob(fact.sha256)}"
        try:
            if not replace and system.exists(path) and system.size(path) == fact.size:
                return 0
            self._upload(path, source)
        except Exception as error:
            raise self._failed(error) from error
        return fact.size

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, all at once."""
        system, root = self._system()
        path = f"{root}/{name}"
        try:
            if self.protocol in _ATOMIC:
                system.pipe_file(path, data)
                return
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            temporary = _temporary(path)
            system.pipe_file(temporary, data)
            system.mv(temporary, path)
        except Exception as error:
            raise self._failed(error) from error

    def _upload(self, path: str, source: Path) -> None:
        system, _ = self._system()
        if self.protocol in _ATOMIC:
            system.put_file(str(source), path)
            return
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        temporary = _temporary(path)
        system.put_file(str(source), temporary)
        system.mv(temporary, path)

    def _refused(self, key: str, reason: str) -> Refused:
        return Refused(
            f"the entry {key} of {self.url} is refused: {reason}",
            f"`runner store push {key[:12]} --replace` where a sound one is puts it in its place",
        )

    def _failed(self, error: Exception) -> StoreError:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return StoreError(
            f"the remote store {self.url} cannot be reached or written: {what}", "check its address and credentials"
        )


def _blob(sha: str) -> str:
    return f"blobs/{sha[:2]}/{sha}"


def _temporary(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{uuid.uuid4().hex}.part"

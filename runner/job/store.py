"""The step store: one folder for each key, committed atomically.

    store/
      <key>/                 record.json  metrics.json  log.txt  out/...     committed: read-only files
      .staging/<key>/        stage.json  progress.json  log.txt  out/  scratch/     where resume continues
      .locks/<key>.lock      held by the one process that writes or moves the key
      .corrupt/<key>-<n>/    quarantined entries that no longer matched their records
      .cache/                what makes steps faster and changes no result: kernel timings of TensorRT

A folder's existence does not mean completion; a sealed record and the files that it lists do. Files up to 64 MiB are
hashed whenever an entry is read; larger ones when their size or modification time differs from the record's.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import runner
from runner.errors import StoreError
from runner.job import files, records
from runner.job.entries import Damage, Stage, StoreEntry, difference
from runner.job.locks import Lock
from runner.job.records import FileFact, Record

# Entries that this process has verified, by folder: a plan and its apply would hash everything twice.
_seen: dict[Path, tuple[object, StoreEntry]] = {}


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # one name for one folder: `_seen` is by path

    def prepare(self) -> None:
        """Make the folders and check that they are writable. StoreError, or MachineError when the disk is full."""
        probe = self.root / f".probe-{os.getpid()}"
        try:
            for name in (".staging", ".locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"runner\n")
            probe.unlink()
        except OSError as error:
            if files.is_full(error):
                probe.unlink(missing_ok=True)
                raise files.full_disk(self.root) from error
            raise StoreError(
                f"the jobs folder {self.root.parent} cannot be written: {error.strerror}",
                "make it writable, or choose another one with `--jobs DIR`",
            ) from error

    def lock(self, key: str, command: str = "") -> Lock:
        return Lock(self.root / ".locks" / f"{key}.lock", command)

    def look(self, key: str) -> StoreEntry | Damage | None:
        """Return the entry under `key`, its damage, or None where there is none. Changes nothing."""
        path = self.root / key
        try:
            text = (path / "record.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return Damage(path, "record.json is missing") if path.exists() else None
        except UnicodeDecodeError:
            return Damage(path, "record.json is not UTF-8")
        except OSError as error:
            return Damage(path, f"record.json cannot be read ({error.strerror})")
        try:
            record = records.parse(text)
        except ValueError as error:
            return Damage(path, f"record.json {error}")
        if record.key != key:
            return Damage(path, f"record.json is that of another key, {record.key}")
        try:
            signature = (text, tuple(_signature(file) for file in files.walk(path)))
            known = _seen.get(path)
            if known is not None and known[0] == signature:
                return known[1]
            reason = difference(path, record)
        except OSError as error:
            reason = f"{error.filename} cannot be read ({error.strerror})"
        if reason:
            return Damage(path, reason)
        entry = StoreEntry(path, record)
        _seen[path] = (signature, entry)
        return entry

    def out(self, key: str) -> Path:
        """Return the folder with the files of the entry under `key`."""
        return self.root / key / "out"

    def has(self, key: str) -> bool:
        return isinstance(self.look(key), StoreEntry)

    def entry(self, key: str, warn: Callable[[str], None] | None = None) -> StoreEntry | None:
        """Return the verified entry, or None. A damaged one is quarantined, and `warn` gets a sentence about it.

        A damaged entry whose lock is held is left to the holder, which will verify it too.
        """
        found = self.look(key)
        if not isinstance(found, Damage):
            return found
        lock = self.lock(key, "moving a damaged entry aside")
        if not lock.acquire(wait=False):
            return None
        try:
            return self.entry_locked(key, warn)
        finally:
            lock.release()

    def entry_locked(self, key: str, warn: Callable[[str], None] | None = None) -> StoreEntry | None:
        """Do what `entry` does, for the holder of the key's lock."""
        found = self.look(key)
        if not isinstance(found, Damage):
            return found
        target = self._quarantine(found)
        if warn is not None:
            warn(f"the stored result is damaged: {found.reason}; it was moved to {target} and is recomputed")
        return None

    def verify(self, key: str) -> tuple[Damage | None, Path | None]:
        """Hash every byte of an entry again, and quarantine a damaged one; return its damage and its new place.

        The place is None where another process holds the entry's lock, and nothing was moved.
        """
        found = self._hashed(key)
        if found is None:
            return None, None
        lock = self.lock(key, "moving a damaged entry aside")
        if not lock.acquire(wait=False):
            return found, None
        try:
            found = self._hashed(key)  # another process may have replaced it meanwhile
            return (found, self._quarantine(found)) if found is not None else (None, None)
        finally:
            lock.release()

    def _hashed(self, key: str) -> Damage | None:
        found = self.look(key)
        if not isinstance(found, StoreEntry):
            return found
        try:
            reason = difference(found.path, found.record, thorough=True)
        except OSError as error:
            reason = f"{error.filename} cannot be read ({error.strerror})"
        return Damage(found.path, reason) if reason else None

    def _quarantine(self, found: Damage) -> Path:
        key = found.path.name
        folder = self.root / ".corrupt"
        folder.mkdir(exist_ok=True)
        number = 1
        while (target := folder / f"{key}-{number}").exists():
            number += 1
        os.rename(found.path, target)
        _seen.pop(found.path, None)
        return target

    def partial(self, key: str) -> tuple[int, int] | None:
        """Return (layers finished, layers) of an interrupted step; None where progress.json is torn or missing."""
        try:
            found = json.loads((self.root / ".staging" / key / "progress.json").read_text(encoding="utf-8"))
            layer, layers = found["layer"], found["layers"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (layer, layers) if isinstance(layer, int) and isinstance(layers, int) else None

    def unit(self, key: str) -> str:
        """Return the unit that `partial` counts: "layer", or "step" of a training."""
        try:
            found = json.loads((self.root / ".staging" / key / "progress.json").read_text(encoding="utf-8"))
            return "step" if found.get("unit") == "step" else "layer"
        except (OSError, ValueError, AttributeError):
            return "layer"

    def stage(self, key: str) -> Stage:
        """Return the staging folder of `key`, with the partial result of this version. Hold the key's lock."""
        stage = Stage.for_key(self.root, key)
        label = {"key": key, "runner": runner.__version__}
        try:
            usable = json.loads((stage.path / "stage.json").read_text(encoding="utf-8")) == label
        except (OSError, ValueError):
            usable = False
        if not usable:
            if stage.path.exists():
                shutil.rmtree(stage.path)
            stage.path.mkdir(parents=True)
            files.write_atomic(stage.path / "stage.json", files.canonical(label))
        stage.out.mkdir(exist_ok=True)
        stage.scratch.mkdir(exist_ok=True)
        return stage

    def discard(self, key: str) -> None:
        """Delete what an interrupted run left. Hold the key's lock."""
        path = self.root / ".staging" / key
        if path.exists():
            shutil.rmtree(path)

    def commit(self, stage: Stage, record: Record) -> StoreEntry:
        """Publish what is in the stage's out/. Hold the key's lock. Adds files, digest and time to `record`.

        Everything is on the disk before the record is, and the record before the folder gets its name. If another
        process committed the key meanwhile (locks can fail on network disks), its entry stays.
        """
        facts = []
        for path in files.walk(stage.out):
            _own(path)
            files.sync(path)
            status = path.stat()
            name = path.relative_to(stage.out).as_posix()
            facts.append(FileFact(name, status.st_size, status.st_mtime_ns, files.sha256(path)))
        for base, _, _ in os.walk(stage.out):
            files.sync(Path(base))
        stage.log.touch()
        files.sync(stage.log)
        metrics = files.pretty(dict(record.metrics))
        files.write_atomic(stage.path / "metrics.json", metrics)
        pairs = [(fact.path, fact.sha256) for fact in facts]
        if record.artifact_type == "metrics":
            pairs.append(("../metrics.json", files.sha256(stage.path / "metrics.json")))
        done = replace(record, files=tuple(facts), digest=records.digest(pairs), finished=records.now())
        files.write_atomic(stage.path / "record.json", files.pretty(done.to_json()))
        return self._publish(stage)

    def finish(self, key: str) -> StoreEntry | None:
        """Publish a stage whose process was killed between record and rename. Hold the key's lock.

        Return None where there is none; a stage that does not match its record is removed.
        """
        stage = Stage.for_key(self.root, key)
        try:
            record = records.parse((stage.path / "record.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            record = None
        if record is None or record.key != key or difference(stage.path, record) is not None:
            self.discard(key)
            return None
        return self._publish(stage)

    def adopt(self, stage: Stage) -> StoreEntry:
        """Publish an entry that was pulled: out/, metrics.json and record.json. Hold the key's lock."""
        stage.log.touch()
        for path in files.walk(stage.path):
            files.sync(path)
        for base, _, _ in os.walk(stage.path):
            files.sync(Path(base))
        return self._publish(stage)

    def _publish(self, stage: Stage) -> StoreEntry:
        target = self.root / stage.key
        if stage.scratch.exists():
            shutil.rmtree(stage.scratch)
        for name in ("progress.json", "stage.json"):
            (stage.path / name).unlink(missing_ok=True)
        for path in files.walk(stage.path):
            path.chmod(0o444)
        files.sync(stage.path)
        try:
            os.rename(stage.path, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or not target.exists():
                raise
            if (theirs := self.entry_locked(stage.key)) is not None:
                shutil.rmtree(stage.path)
                return theirs
            os.rename(stage.path, target)
        files.sync(self.root)
        entry = self.look(stage.key)
        if not isinstance(entry, StoreEntry):
            reason = entry.reason if entry is not None else "it is gone"
            raise StoreError(f"{target} is not what was written a moment ago: {reason}", "check the disk")
        return entry

    def keys(self) -> Iterator[str]:
        """Yield the keys of committed folders, unverified, sorted."""
        if self.root.is_dir():
            yield from sorted(path.name for path in self.root.iterdir() if path.is_dir() and path.name[0] != ".")

    def remove(self, key: str) -> int:
        """Remove an entry and its stage, and return the entry's bytes; 0 where its lock is held and it stays."""
        lock = self.lock(key, "removing the entry")
        if not lock.acquire(wait=False):
            return 0
        try:
            path = self.root / key
            freed = sum(file.lstat().st_size for file in files.walk(path))
            if path.exists():
                # Renamed first: a removal that is killed half-way leaves no partial entry under the key.
                gone = self.root / ".staging" / f"{key}.removed"
                if gone.exists():
                    shutil.rmtree(gone)
                os.rename(path, gone)
                shutil.rmtree(gone)
            self.discard(key)
            return freed
        finally:
            lock.release()


def _own(path: Path) -> None:
    """Replace a link by a copy: the file becomes read-only, which would change the original too."""
    status = path.lstat()
    if path.is_symlink() or status.st_nlink > 1:
        copy = path.with_name(f".{path.name}.own")
        shutil.copy2(path, copy)
        os.replace(copy, path)


def _signature(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return (path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

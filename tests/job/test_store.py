from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.job import entries, files, records
from runner.job.entries import Damage, Stage, StoreEntry
from runner.job.records import Record
from runner.job.store import Store

KEY = "ab" * 32


def record(artifact_type: str = "checkpoint", **metrics: float) -> Record:
    details: Any = {1: ("a", None)}
    return Record(
        key=KEY, key_inputs={"kind": "fake.layers"}, kind="fake.layers", kind_version=1, id="gptq", recipe="demo",
        seconds=1.5, memory=2048, metrics=metrics or {"quality": 1.0}, details=details,
        artifact_type=artifact_type, inputs={"checkpoint": "cd"}, environment={"python": "3.11"},
    )  # fmt: skip


def opened(tmp_path: Path) -> Store:
    store = Store(tmp_path / "jobs" / "store")
    store.prepare()
    return store


def filled(store: Store) -> Stage:
    stage = store.stage(KEY)
    (stage.out / "shards").mkdir(exist_ok=True)
    (stage.out / "shards" / "a.bin").write_bytes(b"first")
    (stage.out / "config.json").write_bytes(b"{}")
    (stage.scratch / "part-0").write_bytes(b"scratch")
    stage.log.write_text("said\n")
    return stage


def test_a_commit_is_found_again_whole(tmp_path: Path) -> None:
    store = opened(tmp_path)
    entry = store.commit(filled(store), record())
    assert sorted(p.relative_to(entry.path).as_posix() for p in files.walk(entry.path)) == sorted(entry.names)
    assert entry.names == ("record.json", "metrics.json", "log.txt", "out/config.json", "out/shards/a.bin")
    assert all(not (entry.path / name).stat().st_mode & 0o222 for name in entry.names)
    found = Store(store.root).entry(KEY)
    assert found == entry
    assert entry.record.details == {"1": ["a", None]}, "as JSON has it"
    pairs = [(fact.path, fact.sha256) for fact in entry.record.files]
    assert [path for path, _ in pairs] == ["config.json", "shards/a.bin"]
    assert entry.record.digest == records.digest(pairs)
    assert not (store.root / ".staging" / KEY).exists()


def test_the_digest_of_a_step_without_files_is_that_of_its_metrics(tmp_path: Path) -> None:
    one, two, three = (opened(tmp_path / name) for name in "abc")
    a = one.commit(one.stage(KEY), record("metrics", perplexity=15.5)).record.digest
    b = two.commit(two.stage(KEY), record("metrics", perplexity=15.5)).record.digest
    c = three.commit(three.stage(KEY), record("metrics", perplexity=15.6)).record.digest
    assert a == b != c


def test_existence_is_no_completion(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.look(KEY) is None
    filled(store)
    assert store.look(KEY) is None
    (store.root / KEY / "out").mkdir(parents=True)
    assert store.look(KEY) == Damage(store.root / KEY, "record.json is missing")
    assert not store.has(KEY)


def spoil(entry: StoreEntry, name: str, change: Callable[[bytes], bytes]) -> None:
    path = entry.path / name
    times = path.stat()
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("out/config.json", lambda data: b"[]", "out/config.json has other bytes than were written"),
        ("out/config.json", lambda data: b"{}\n", "out/config.json has 3 bytes, its record says 2"),
        ("out/shards/b.bin", None, "out/shards/b.bin is not in its record"),
        ("metrics.json", lambda data: data + b" ", "metrics.json has other bytes than were written"),
        ("record.json", lambda data: data.replace(b"2048", b"2049"), "record.json was changed after it was written"),
        ("record.json", lambda data: data[:-9], "record.json is not JSON"),
        ("record.json", lambda data: b"[]", "record.json is not a record of schema 1"),
        ("record.json", lambda data: b'{"schema": 2}', "record.json is not a record of schema 1"),
        ("record.json", lambda data: b"\xff\xfe", "record.json is not UTF-8"),
    ],
)  # fmt: skip
def test_every_change_is_noticed(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None, reason: str
) -> None:
    store = opened(tmp_path)
    entry = store.commit(filled(store), record())
    if change is None:
        (entry.path / name).write_bytes(b"")
    else:
        spoil(entry, name, change)
    assert store.look(KEY) == Damage(entry.path, reason)
    heard: list[str] = []
    assert store.entry(KEY, heard.append) is None
    kept = store.root / ".corrupt" / f"{KEY}-1"
    assert heard == [f"the stored result is damaged: {reason}; it was moved to {kept} and is recomputed"]
    assert (kept / "out" / "shards" / "a.bin").read_bytes() == b"first"
    assert store.look(KEY) is None


def test_a_record_of_other_fields_or_another_key_is_damage(tmp_path: Path) -> None:
    store = opened(tmp_path)
    entry = store.commit(filled(store), record())
    document = json.loads((entry.path / "record.json").read_text())
    foreign = {**document, "surprise": 1}
    spoil(entry, "record.json", lambda data: json.dumps({**foreign, "seal": records.seal(foreign)}).encode())
    assert store.look(KEY) == Damage(entry.path, "record.json lacks fields of a record, or has foreign ones")
    other = "cd" * 32
    spoil(entry, "record.json", lambda data: files.pretty(document).encode())
    entry.path.rename(store.root / other)
    assert store.look(other) == Damage(store.root / other, f"record.json is that of another key, {KEY}")


def test_damage_is_numbered_and_kept(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for _ in range(2):
        spoil(store.commit(filled(store), record()), "out/config.json", lambda data: b"!!")
        assert store.entry(KEY) is None
    assert sorted(path.name for path in (store.root / ".corrupt").iterdir()) == [f"{KEY}-1", f"{KEY}-2"]


def test_damage_under_a_held_lock_is_left_to_its_holder(tmp_path: Path) -> None:
    store = opened(tmp_path)
    entry = store.commit(filled(store), record())
    spoil(entry, "out/config.json", lambda data: b"!!")
    with store.lock(KEY):
        assert store.entry(KEY) is None
        assert entry.path.exists()
        assert store.entry_locked(KEY) is None
        assert not entry.path.exists()


def test_large_files_are_hashed_when_their_time_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "ALWAYS_HASHED", 3)
    store = opened(tmp_path)
    entry = store.commit(filled(store), record())
    hashed: list[str] = []
    real = files.sha256

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(files, "sha256", counting)
    monkeypatch.setattr("runner.job.store._seen", {})
    assert store.has(KEY)
    assert hashed == ["config.json"]
    os.utime(entry.out / "shards" / "a.bin")
    assert store.has(KEY), "another time alone is no damage"
    assert hashed == ["config.json", "config.json", "a.bin"]
    assert store.has(KEY)
    assert len(hashed) == 3, "what was just looked at is not hashed again"
    path = entry.out / "shards" / "a.bin"
    path.chmod(0o644)
    path.write_bytes(b"FIRST")
    assert store.look(KEY) == Damage(entry.path, "out/shards/a.bin has other bytes than were written")


def test_a_stage_goes_on_where_it_was_left(tmp_path: Path) -> None:
    store = opened(tmp_path)
    filled(store)
    assert store.partial(KEY) is None
    (store.root / ".staging" / KEY / "progress.json").write_text('{"layer": 17, "layers": 32, "hidden": []}')
    assert store.partial(KEY) == (17, 32)
    assert store.unit(KEY) == "layer"
    (store.root / ".staging" / KEY / "progress.json").write_text('{"layer": 120, "layers": 400, "unit": "step"}')
    assert (store.partial(KEY), store.unit(KEY)) == ((120, 400), "step")
    assert (store.stage(KEY).scratch / "part-0").read_bytes() == b"scratch"


@pytest.mark.parametrize("torn", ["", '{"layer": 17', "[]", '{"layer": 17}', '{"layer": "a", "layers": 2}'])
def test_torn_progress_is_no_progress(tmp_path: Path, torn: str) -> None:
    store = opened(tmp_path)
    (filled(store).path / "progress.json").write_text(torn)
    assert store.partial(KEY) is None
    assert store.unit(KEY) == "layer"


def test_a_stage_of_another_version_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    filled(store)
    monkeypatch.setattr("runner.__version__", "99.0")
    assert not list(store.stage(KEY).scratch.iterdir())


def test_a_link_in_the_result_becomes_a_file_of_its_own(tmp_path: Path) -> None:
    store = opened(tmp_path)
    theirs = tmp_path / "tokenizer.json"
    theirs.write_text("tokens")
    stage = filled(store)
    os.link(theirs, stage.out / "tokenizer.json")
    (stage.out / "again.json").symlink_to(theirs)
    entry = store.commit(stage, record())
    assert theirs.stat().st_mode & 0o200
    for name in ("tokenizer.json", "again.json"):
        assert not (entry.out / name).is_symlink()
        assert not (entry.out / name).samefile(theirs)
        assert (entry.out / name).read_text() == "tokens"


def test_who_commits_first_stays(tmp_path: Path) -> None:
    store = opened(tmp_path)
    first = store.commit(filled(store), record(quality=1.0))
    assert store.commit(filled(store), record(quality=2.0)) == first
    assert not (store.root / ".staging" / KEY).exists()


def test_a_commit_replaces_damage(tmp_path: Path) -> None:
    store = opened(tmp_path)
    spoil(store.commit(filled(store), record()), "out/config.json", lambda data: b"!!")
    assert store.commit(filled(store), record(quality=2.0)).record.metrics == {"quality": 2.0}


class Killed(BaseException):
    """The process ends here."""


def test_a_commit_killed_at_any_moment_is_finished_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies before the n-th change of the disk, for every n; then what a worker does next completes it."""
    calls = [(os, "fsync"), (os, "replace"), (os, "rename"), (os, "chmod"), (os, "unlink"), (os, "rmdir")]
    calls += [(shutil, "rmtree")]
    whole = opened(tmp_path / "whole").commit(filled(opened(tmp_path / "whole")), record())
    redone = finished = 0
    for fatal in range(1000):
        store = opened(tmp_path / str(fatal))
        stage = filled(store)
        left = fatal

        def dying(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for module, name in calls:
                patch.setattr(module, name, dying(getattr(module, name)))
            try:
                store.commit(stage, record())
                alive = True
            except Killed:
                alive = False
        assert isinstance(store.look(KEY), StoreEntry | None), "never damage"
        if alive:
            break
        entry = store.entry(KEY) or store.finish(KEY)
        finished += entry is not None
        if entry is None:
            redone += 1
            entry = store.commit(filled(store), record())
        assert entry.record.digest == whole.record.digest
        assert [(f.path, f.sha256) for f in entry.record.files] == [(f.path, f.sha256) for f in whole.record.files]
    assert redone > 5
    assert finished > 5


def test_a_damaged_finished_stage_is_thrown_away(tmp_path: Path) -> None:
    store = opened(tmp_path)
    entry = store.commit(filled(store), record())
    staged = store.root / ".staging" / KEY
    entry.path.rename(staged)
    (staged / "out" / "config.json").chmod(0o644)
    (staged / "out" / "config.json").write_text("!!")
    assert store.finish(KEY) is None
    assert not staged.exists()


def test_removing_frees_and_forgets(tmp_path: Path) -> None:
    store = opened(tmp_path)
    entry = store.commit(filled(store), record())
    size = sum((entry.path / name).stat().st_size for name in entry.names)
    filled(store)
    with store.lock(KEY):
        assert store.remove(KEY) == 0, "somebody is at it"
    assert list(store.keys()) == [KEY]
    assert store.remove(KEY) == size
    assert list(store.keys()) == []
    assert not (store.root / ".staging" / KEY).exists()


def test_links_are_copied_where_they_cannot_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("text")

    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    files.link(tmp_path / "a", tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b").read_text() == "text"
    assert files.same_file(tmp_path / "a", tmp_path / "deep" / "b")
    (tmp_path / "deep" / "b").write_text("other")
    assert not files.same_file(tmp_path / "a", tmp_path / "deep" / "b")
    assert not files.same_file(tmp_path / "a", tmp_path / "none")


def test_a_full_disk_is_known_through_other_libraries() -> None:
    assert files.is_full(OSError(errno.ENOSPC, "x"))
    assert files.is_full(OSError(errno.EDQUOT, "x"))
    assert files.is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    outer = RuntimeError("could not save")
    outer.__cause__ = OSError(errno.ENOSPC, "x")
    assert files.is_full(outer)
    assert not files.is_full(OSError(errno.EIO, "x"))


def test_sizes_read_well() -> None:
    assert [files.size_text(n) for n in (0, 999, 1536, 2_000_000, 6_100_000_000, 7 * 10**12)] == [
        "0 B", "999 B", "1.5 kB", "2.0 MB", "6.1 GB", "7.0 TB",
    ]  # fmt: skip

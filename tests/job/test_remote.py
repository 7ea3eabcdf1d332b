"""The remote store: what comes back is what was made, or nothing does."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from runner.errors import MachineError, StoreError, UsageError
from runner.job import files, records
from runner.job.entries import StoreEntry
from runner.job.records import Record
from runner.job.remote import Refused, Remote
from runner.job.store import Store
from runner.plan.keys import sha256

CONTENT = {"model.safetensors": b"weights" * 1000, "sub/config.json": b"{}", "empty": b""}


def made(root: Path, number: int = 0, content: dict[str, bytes] | None = None, kind: str = "checkpoint") -> StoreEntry:
    """A committed entry, whose key is that of its inputs."""
    store = Store(root)
    store.prepare()
    inputs = {"kind": "fake.a", "params": {"number": number, "ratio": 0.1}}
    stage = store.stage(sha256(inputs))
    for name, data in (CONTENT if content is None else content).items():
        (stage.out / name).parent.mkdir(parents=True, exist_ok=True)
        (stage.out / name).write_bytes(data)
    record = Record(
        key=stage.key, key_inputs=inputs, kind="fake.a", kind_version=1, id="a", recipe="demo", seconds=1.0, memory=1,
        metrics={"quality": 1.5}, details={}, artifact_type=kind, inputs={}, environment={},
    )  # fmt: skip
    return store.commit(stage, record)


def remote_at(tmp_path: Path) -> Remote:
    return Remote(f"file://{tmp_path / 'remote'}")


def pulled(tmp_path: Path, entry: StoreEntry) -> StoreEntry:
    store = Store(tmp_path / "there")
    store.prepare()
    found = remote_at(tmp_path).pull(entry.record.key, store)
    assert found is not None
    return found


def test_an_entry_comes_back_as_it_was_made(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    assert remote_at(tmp_path).push(entry) == sum(map(len, CONTENT.values()))
    assert remote_at(tmp_path).keys() == [entry.record.key]
    back = pulled(tmp_path, entry)
    assert back.record == entry.record
    assert {p.relative_to(back.out).as_posix(): p.read_bytes() for p in files.walk(back.out)} == CONTENT
    assert (back.path / "record.json").read_bytes() == (entry.path / "record.json").read_bytes()
    assert not (back.out / "model.safetensors").stat().st_mode & 0o222
    assert Store(tmp_path / "there").has(entry.record.key)


def test_metrics_alone(tmp_path: Path) -> None:
    entry = made(tmp_path / "here", content={}, kind="metrics")
    remote_at(tmp_path).push(entry)
    assert pulled(tmp_path, entry).record.metrics == {"quality": 1.5}


def test_files_that_entries_share_are_sent_once(tmp_path: Path) -> None:
    remote_at(tmp_path).push(made(tmp_path / "here", 0))
    assert remote_at(tmp_path).push(made(tmp_path / "here", 1)) == 0
    assert len(remote_at(tmp_path).keys()) == 2


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "there")
    store.prepare()
    assert remote_at(tmp_path).pull("0" * 64, store) is None
    assert remote_at(tmp_path).keys() == []


def test_an_interrupted_push_shows_nothing_and_the_next_one_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    entry = made(tmp_path / "here")
    local = type(fsspec.filesystem("file"))
    real, calls = local.mv, []

    def dies(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(local, "mv", dies)
    with pytest.raises(KeyboardInterrupt):
        remote_at(tmp_path).push(entry)
    assert remote_at(tmp_path).keys() == []
    store = Store(tmp_path / "there")
    store.prepare()
    assert remote_at(tmp_path).pull(entry.record.key, store) is None
    monkeypatch.undo()
    assert remote_at(tmp_path).push(entry) == len(CONTENT["sub/config.json"])
    assert pulled(tmp_path, entry).record == entry.record


def test_a_disk_that_fails_leaves_no_entry(tmp_path: Path, monkeypatch: Any) -> None:
    entry = made(tmp_path / "here")
    local = type(fsspec.filesystem("file"))

    def full(self: Any, *args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "put_file", full)
    with pytest.raises(StoreError) as caught:
        remote_at(tmp_path).push(entry)
    assert caught.value.message == (
        f"the remote store file://{tmp_path / 'remote'} cannot be reached or written: "
        "[Errno 28] No space left on device"
    )
    assert remote_at(tmp_path).keys() == []


def test_an_interrupted_pull_publishes_nothing_and_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    store = Store(tmp_path / "there")
    store.prepare()
    fetch = Remote._fetch_file
    fetched: list[str] = []

    def dies(self: Remote, key: str, fact: Any, target: Path) -> None:
        if len(fetched) == 2:
            raise KeyboardInterrupt
        fetched.append(fact.path)
        fetch(self, key, fact, target)

    monkeypatch.setattr(Remote, "_fetch_file", dies)
    with pytest.raises(KeyboardInterrupt):
        remote_at(tmp_path).pull(entry.record.key, store)
    assert not store.has(entry.record.key)
    assert list(store.keys()) == []
    fetched.clear()
    assert pulled(tmp_path, entry).record == entry.record
    assert fetched == ["sub/config.json"]


def rewritten(tmp_path: Path, entry: StoreEntry, change: Callable[[dict[str, Any]], None]) -> None:
    """The remote record changed by somebody who knows how records are sealed."""
    path = tmp_path / "remote" / "records" / f"{entry.record.key}.json"
    document = json.loads(path.read_text())
    change(document)
    document["seal"] = records.seal(document)
    path.write_text(files.pretty(document))


def refusal(tmp_path: Path, entry: StoreEntry) -> str:
    store = Store(tmp_path / "there")
    store.prepare()
    with pytest.raises(Refused) as caught:
        remote_at(tmp_path).pull(entry.record.key, store)
    assert list(store.keys()) == []
    head = f"the entry {entry.record.key} of file://{tmp_path / 'remote'} is refused: "
    assert caught.value.message.startswith(head)
    return caught.value.message.removeprefix(head)


def blob(tmp_path: Path, entry: StoreEntry, name: str) -> Path:
    sha = next(fact.sha256 for fact in entry.record.files if fact.path == name)
    return tmp_path / "remote" / "blobs" / sha[:2] / sha


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"W" + data[1:], "out/model.safetensors has other bytes than its record says"),
        (lambda data: data[:-1], "out/model.safetensors has 6999 bytes, its record says 7000"),
        (lambda data: data + b"x", "out/model.safetensors has 7001 bytes, its record says 7000"),
    ],
)
def test_other_bytes_are_refused(tmp_path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    path = blob(tmp_path, entry, "model.safetensors")
    path.write_bytes(change(path.read_bytes()))
    assert refusal(tmp_path, entry) == reason


def test_a_refused_entry_is_replaced(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    path = blob(tmp_path, entry, "model.safetensors")
    path.write_bytes(path.read_bytes().replace(b"weights", b"heights"))
    assert remote_at(tmp_path).push(entry) == 0, "an entry that is there stays"
    assert refusal(tmp_path, entry) == "out/model.safetensors has other bytes than its record says"
    assert remote_at(tmp_path).push(entry, replace=True) == sum(fact.size for fact in entry.record.files)
    assert pulled(tmp_path, entry).record == entry.record


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    path = blob(tmp_path, entry, "model.safetensors")
    path.unlink()
    assert refusal(tmp_path, entry) == f"{path.relative_to(tmp_path / 'remote').as_posix()} is missing"


def test_a_changed_record_is_refused(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    path = tmp_path / "remote" / "records" / f"{entry.record.key}.json"
    path.write_text(path.read_text().replace("1.5", "0.5"))
    assert refusal(tmp_path, entry) == "its record was changed after it was written"


def test_the_record_of_another_entry_is_refused(tmp_path: Path) -> None:
    entry, other = made(tmp_path / "here"), made(tmp_path / "here", 1)
    remote_at(tmp_path).push(entry)
    folder = tmp_path / "remote" / "records"
    (folder / f"{entry.record.key}.json").write_bytes((other.path / "record.json").read_bytes())
    assert refusal(tmp_path, entry) == f"its record is that of another key, {other.record.key}"


def test_inputs_that_have_another_key_are_refused(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    rewritten(tmp_path, entry, lambda document: document["key_inputs"]["params"].update(number=7))
    key = sha256({"kind": "fake.a", "params": {"number": 7, "ratio": 0.1}})
    assert refusal(tmp_path, entry) == f"the inputs in its record have the key {key}"


@pytest.mark.parametrize("name", ["../../stolen", "/etc/passwd", "a/../../b", "a//b", "C:/x", "a\\b", "", ".", "a\0b"])
def test_places_outside_are_refused(tmp_path: Path, name: str) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    rewritten(tmp_path, entry, lambda document: document["files"][0].update(path=name))
    assert refusal(tmp_path, entry) == f"its record names {json.dumps(name)}, which is a place outside of the entry"


@pytest.mark.parametrize(
    "change", [{"size": -1}, {"size": "7"}, {"sha256": "../x"}, {"mtime_ns": None}, {"mtime_ns": True}]
)
def test_facts_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    rewritten(tmp_path, entry, lambda document: document["files"][0].update(change))
    assert refusal(tmp_path, entry) == 'its record describes "empty" in a way that no step does'


def test_files_that_cannot_lie_beside_each_other_are_refused(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    rewritten(tmp_path, entry, lambda document: document["files"][0].update(path="sub"))
    assert refusal(tmp_path, entry) == "its record names a file twice, or as a folder too"


def test_other_metrics_than_the_digest_covers_are_refused(tmp_path: Path) -> None:
    entry = made(tmp_path / "here", content={}, kind="metrics")
    remote_at(tmp_path).push(entry)
    rewritten(tmp_path, entry, lambda document: document["metrics"].update(quality=0.5))
    assert refusal(tmp_path, entry).endswith(f", its record says {entry.record.digest}")


def _pushes(here: str, remote: str) -> None:
    store = Store(Path(here))
    for key in store.keys():  # noqa: SIM118 -- a Store is no mapping
        entry = store.entry(key)
        assert entry is not None
        Remote(remote).push(entry)


def _pulls(there: str, remote: str) -> None:
    store = Store(Path(there))
    store.prepare()
    for key in Remote(remote).keys():  # noqa: SIM118 -- a Remote is no mapping
        assert Remote(remote).pull(key, store) is not None


def test_two_writers_and_two_readers_at_once(tmp_path: Path) -> None:
    for number in range(3):
        made(tmp_path / "here", number, {f"{number}": os.urandom(100_000), "same": b"same"})
    remote = f"file://{tmp_path / 'remote'}"
    spawn = multiprocessing.get_context("spawn")
    for target, folder in ((_pushes, "here"), (_pulls, "there")):
        processes = [spawn.Process(target=target, args=(str(tmp_path / folder), remote)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    assert list(there.keys()) == list(here.keys())
    assert all(there.has(key) for key in here.keys())  # noqa: SIM118 -- a Store is no mapping
    assert sorted(p.name for p in (tmp_path / "remote").rglob(".*")) == []


def test_an_entry_that_is_here_already_stays(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    before = entry.path.stat().st_ino
    assert remote_at(tmp_path).pull(entry.record.key, Store(tmp_path / "here")) is not None
    assert entry.path.stat().st_ino == before


def test_what_an_interrupted_run_made_of_it_goes(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    store = Store(tmp_path / "there")
    store.prepare()
    (store.stage(entry.record.key).out / "half").write_text("half")
    assert remote_at(tmp_path).pull(entry.record.key, store) is not None
    assert list((store.root / ".staging").iterdir()) == []


def test_one_that_somebody_makes_is_left_to_them(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    store = Store(tmp_path / "there")
    store.prepare()
    with store.lock(entry.record.key, "runner apply"):
        assert remote_at(tmp_path).pull(entry.record.key, store, wait=False) is None


def test_a_password_in_the_address() -> None:
    with pytest.raises(UsageError) as caught:
        Remote("sftp://me:secret@host/store")
    assert caught.value.message == "the URL of the remote store holds a password, which records would show"


def test_offline_forbids_what_needs_a_network(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RUNNER_OFFLINE", "1")
    assert Remote(str(tmp_path)).keys() == []
    with pytest.raises(UsageError) as caught:
        Remote("s3://bucket/store")
    assert caught.value.message == "the remote store s3://bucket/store needs a network, and --offline forbids it"


def test_an_unknown_protocol() -> None:
    with pytest.raises(UsageError) as caught:
        Remote("nowhere://bucket").keys()
    assert caught.value.message == "the remote store nowhere://bucket cannot be opened: Protocol not known: nowhere"


def test_a_package_that_is_not_installed(monkeypatch: Any) -> None:
    def missing(*args: Any, **options: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MachineError) as caught:
        Remote("s3://bucket/store").keys()
    assert caught.value.render() == (
        "error: the remote store s3://bucket/store cannot be opened: Install s3fs to access S3\n"
        "help: `pip install s3fs`"
    )


def test_records_of_other_schemas_are_refused(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote_at(tmp_path).push(entry)
    rewritten(tmp_path, entry, lambda document: document.update(schema=2))
    assert refusal(tmp_path, entry) == "its record is not a record of schema 1"

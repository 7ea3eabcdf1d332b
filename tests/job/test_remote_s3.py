"""The remote store on a local server that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.job.claims import Claims
from runner.job.remote import Refused, Remote
from runner.job.store import Store
from tests.job.s3_server import credentials, s3_server
from tests.job.test_remote import made

pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto", reason="moto is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # what s3fs and moto warn of is theirs


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def _credentials(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_entry_goes_there_and_comes_back(tmp_path: Path) -> None:
    entry = made(tmp_path / "here")
    remote = Remote("s3://bucket/store")
    assert remote.keys() == []
    assert remote.push(entry) > 0
    assert remote.push(entry) == 0
    assert Remote("s3://bucket/store").keys() == [entry.record.key]
    store = Store(tmp_path / "there")
    store.prepare()
    back = Remote("s3://bucket/store").pull(entry.record.key, store)
    assert back is not None
    assert back.record == entry.record


def test_an_interrupted_push_shows_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    entry = made(tmp_path / "here", 1)
    remote = Remote("s3://bucket/other")
    system, _ = remote._system()
    real, calls = system.put_file, []

    def dies(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(system, "put_file", dies)
    with pytest.raises(KeyboardInterrupt):
        remote.push(entry)
    assert Remote("s3://bucket/other").keys() == []
    monkeypatch.undo()
    remote.push(entry)
    assert Remote("s3://bucket/other").keys() == [entry.record.key]


def test_a_tampered_entry_is_refused(tmp_path: Path) -> None:
    entry = made(tmp_path / "here", 2, {"model.safetensors": b"tampered with " * 99})
    remote = Remote("s3://bucket/tampered")
    remote.push(entry)
    system, root = remote._system()
    (blob,) = system.find(f"{root}/blobs")
    system.pipe_file(blob, b"T" + system.cat_file(blob)[1:])
    store = Store(tmp_path / "there")
    store.prepare()
    with pytest.raises(Refused, match=r"out/model\.safetensors has other bytes than its record says"):
        remote.pull(entry.record.key, store)
    assert list(store.keys()) == []


def test_claims_of_two_processes(tmp_path: Path) -> None:
    first, second = (Claims(Remote("s3://bucket/claimed"), name) for name in ("first", "second"))
    key = "ab" * 32
    assert first.take(key) is None
    holder = second.take(key)
    assert holder is not None
    assert holder.command == "first"
    first.release(key)
    assert second.take(key) is None
    second.close()
    assert Remote("s3://bucket/claimed").names(f"claims/{key}") == []

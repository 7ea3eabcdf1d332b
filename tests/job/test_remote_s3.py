"""The remote store on a local server that speaks S3."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.job.remote import Refused, Remote
from runner.job.store import Store
from tests.job.test_remote import made

pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto", reason="moto is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # what s3fs and moto warn of is theirs


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with no bucket but `bucket`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json").close()
                break
            except OSError:
                time.sleep(0.1)
        request = urllib.request.Request(f"{url}/bucket", method="PUT", headers={"Authorization": "AWS4 x/x/x/s3/x"})
        urllib.request.urlopen(request).close()
        try:
            yield url
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _credentials(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
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

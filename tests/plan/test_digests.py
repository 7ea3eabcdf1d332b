"""Digests of files and the cache that remembers them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.plan.digests import digest_files, digest_named, load_cache, update_cache


def old_file(path: Path, content: bytes) -> Path:
    """A file that was last changed long ago."""
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = old_file(tmp_path / "a", b"x" * 3_000_000)
    assert digest_files([path], None) == {path: hashlib.sha256(b"x" * 3_000_000).hexdigest()}


def test_a_known_file_is_not_read_again(tmp_path: Path) -> None:
    cache, path = tmp_path / "digests.json", old_file(tmp_path / "a", b"one")
    first = digest_files([path], cache)
    path.write_bytes(b"two")
    os.utime(path, ns=(10**18, 10**18))  # same size, time and inode: nothing shows the change
    assert digest_files([path], cache) == first
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert digest_files([path], cache) == {path: hashlib.sha256(b"two").hexdigest()}


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    cache, path = tmp_path / "digests.json", old_file(tmp_path / "a", b"one")
    digest_files([path], cache)
    os.replace(old_file(tmp_path / "b", b"two"), path)
    assert digest_files([path], cache) == {path: hashlib.sha256(b"two").hexdigest()}


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    cache, path = tmp_path / "digests.json", tmp_path / "a"
    path.write_bytes(b"one")
    digest_files([path], cache)
    assert load_cache(cache) == {}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"version": 0, "entries": {}}', '{"version": 1, "entries": 3}'])
def test_a_broken_cache_is_ignored(tmp_path: Path, content: str) -> None:
    cache, path = tmp_path / "digests.json", old_file(tmp_path / "a", b"one")
    cache.write_text(content)
    assert digest_files([path], cache) == {path: hashlib.sha256(b"one").hexdigest()}
    assert len(load_cache(cache)) == 1


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    path = old_file(tmp_path / "a", b"one")
    (tmp_path / "file").write_text("")
    assert digest_files([path], tmp_path / "file" / "digests.json") == {path: hashlib.sha256(b"one").hexdigest()}


def test_two_processes_may_write(tmp_path: Path) -> None:
    """Whatever the order, the file stays whole, and nothing is left beside it."""
    cache = tmp_path / "digests.json"
    code = (
        "import sys; from pathlib import Path; from runner.plan.digests import update_cache\n"
        "for i in range(200): update_cache(Path(sys.argv[1]), {sys.argv[2] + str(i): i})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(cache), name]) for name in ("a", "b")]
    while any(writer.poll() is None for writer in writers):
        if cache.exists():
            json.loads(cache.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert {"a199", "b199"} & set(load_cache(cache))
    assert [path.name for path in tmp_path.iterdir()] == ["digests.json"]


def test_update_keeps_what_is_there(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "digests.json"
    update_cache(cache, {"a": 1})
    update_cache(cache, {"b": 2})
    assert load_cache(cache) == {"a": 1, "b": 2}


def test_names_and_contents_both_count() -> None:
    base = digest_named({"a": "1", "b": "2"})
    assert base == digest_named({"b": "2", "a": "1"})
    assert len({base, digest_named({"a": "2", "b": "1"}), digest_named({"a": "1"}), digest_named({"c": "1"})}) == 4

"""Parents at URLs: a server on this machine, files, and backends that are not there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from runner.recipe.load import load
from runner.recipe.origins.locate import Pins
from tests.recipe.elsewhere import BASE, complaint_of, write


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    write("www/r/base.yaml", BASE)
    write("www/r/middle.yaml", "extends: base.yaml\nparams: {bits: 3}\n")
    write("www/r/out.yaml", "extends: ../../x.yaml\n")
    write("www/r/file.yaml", f"extends: file://{tmp_path}/www/r/base.yaml\n")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The URL of a server of the folder www."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder / "www"))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


def child(address: str) -> str:
    return write("child.yaml", f"extends: {address}\n")


def refused(address: str, code: str, message: str, help: str) -> None:
    assert complaint_of(child(address)) == (
        f"child.yaml:1:10: error[{code}]: {message}\n"
        f"    1 | extends: {address}\n      |          {'^' * len(address)}\nhelp: {help}"
    )


def test_a_recipe_at_a_url_and_what_it_extends(server: str, folder: Path) -> None:
    for base in (server, f"file://{folder}/www"):
        recipe = load(child(f"{base}/r/middle.yaml"))
        assert (recipe.name, recipe.params) == ("base", {"bits": 3})
        assert [parent.name for parent in recipe.parents] == [f"{base}/r/middle.yaml", f"{base}/r/base.yaml"]


def test_a_store_of_fsspec() -> None:
    import fsspec

    with fsspec.open("memory://bucket/base.yaml", "wb") as file:
        file.write(BASE.encode())
    assert load(child("memory://bucket/base.yaml")).name == "base"


def test_a_pinned_recipe_is_read_without_a_network(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{server}/r/base.yaml"
    (parent,) = load(child(address)).parents
    monkeypatch.setenv("RUNNER_OFFLINE", "1")
    assert load(child(address), pins=Pins({}, {address: parent.digest})).params == {"bits": 4}
    message = f"`{address}` cannot be read: the network is forbidden, by `--offline` or HF_HUB_OFFLINE"
    refused(address, "R125", message, "a lock, with the recipe in the cache, needs no network")


def test_what_the_server_says_now_counts(server: str) -> None:
    address = f"{server}/r/base.yaml"
    (parent,) = load(child(address)).parents
    write("www/r/base.yaml", BASE.replace("bits: 4", "bits: 8"))
    assert load(child(address), pins=Pins({}, {address: parent.digest})).params == {"bits": 8}


def test_what_is_not_there(server: str, folder: Path) -> None:
    help = "check the URL; for a page that asks for a login, use git or a store with credentials"
    refused(f"{server}/none.yaml", "R125", f"`{server}/none.yaml` cannot be read: 404 File not found", help)
    refused(f"file://{folder}/none.yaml", "R125", f"`file://{folder}/none.yaml` is not there", "check the URL")
    refused(
        "http://127.0.0.1:9/a.yaml", "R125",
        "`http://127.0.0.1:9/a.yaml` cannot be read: [Errno 111] Connection refused", "check the URL and the network",
    )  # fmt: skip


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # where an earlier test has imported it
    refused("s3://b/a.yaml", "R125", "`s3://b/a.yaml` needs a package that is not installed", "`pip install s3fs`")
    help = "write a path, `pack:NAME/RECIPE`, `git+https://...@REF#PATH`, or a URL of https, s3, gs, hf or file"
    refused("nowhere://b/a.yaml", "R122", "`nowhere://` is no place that fsspec knows", help)


def test_a_recipe_from_a_server_cannot_reach_this_machine(server: str, folder: Path) -> None:
    written = f"file://{folder}/www/r/base.yaml"
    assert complaint_of(child(f"{server}/r/file.yaml")) == (
        f"{server}/r/file.yaml:1:10: error[R126]: a recipe from elsewhere names `{written}`, a file of this machine\n"
        f"    1 | extends: {written}\n      |          {'^' * len(written)}\n"
        "help: a recipe from elsewhere extends only what came with it, or a remote place"
    )
    assert complaint_of(child(f"{server}/r/out.yaml")) == (
        f"{server}/r/out.yaml:1:10: error[R126]: `../../x.yaml` leads out of {server}\n"
        "    1 | extends: ../../x.yaml\n      |          ^^^^^^^^^^^^\n"
        "help: a recipe from elsewhere extends only what came with it, or names it by URL"
    )


def test_a_password_is_refused() -> None:
    help = "leave it out; set the credentials as fsspec's backend reads them"
    address = "https://user:secret@example.com/a.yaml"
    refused(address, "R122", "the URL holds a password, which complaints and locks would show", help)


def test_more_than_a_recipe_has(folder: Path) -> None:
    write("www/r/base.yaml", BASE + "#" * 2**20)
    address = f"file://{folder}/www/r/base.yaml"
    lines = complaint_of(child(address)).splitlines()
    assert lines[0] == f"child.yaml:1:10: error[R125]: `{address}` is larger than 1 MiB, which no recipe is"

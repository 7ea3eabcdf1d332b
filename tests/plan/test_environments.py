"""Environments: resolved from a folder of wheels, built, taken from the cache and the lock; what does not resolve."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from runner.errors import MachineError
from runner.job import built_environments
from runner.plan import environments
from runner.plan.environments import Wanted

HAS_UV = shutil.which("uv") is not None or importlib.util.find_spec("uv") is not None
BACKENDS = [pytest.param("uv", marks=pytest.mark.skipif(not HAS_UV, reason="there is no uv")), "pip"]


def wheel(folder: Path, version: str, code: str = "") -> Path:
    """A wheel of the package `tiny-tool`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"tiny_tool-{version}-py3-none-any.whl"
    info = f"tiny_tool-{version}.dist-info"
    members = {
        "tiny_tool.py": code or f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny-tool\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in members) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in {**members, f"{info}/RECORD": record}.items():
            file.writestr(name, text)
    return path


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_ENVIRONMENTS", str(tmp_path / "environments"))
    for name in ("PIP_FIND_LINKS", "PIP_CONFIG_FILE", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


def wanted(wheels: Path, requirement: str = "tiny-tool>=1") -> Wanted:
    return Wanted((requirement,), index="none", find_links=str(wheels))


def choose(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "pip":
        monkeypatch.setattr(environments, "uv", lambda: None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_resolved_with_hashes_built_once_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    choose(backend, monkeypatch)
    made = wheel(tmp_path / "wheels", "1.2")
    found = environments.resolve(wanted(tmp_path / "wheels"))
    sha = hashlib.sha256(made.read_bytes()).hexdigest()
    assert found.packages == (f"tiny-tool==1.2 --hash=sha256:{sha}",)
    said: list[str] = []
    python = built_environments.ensure(found, said.append)
    assert built_environments.ensure(found, said.append) == python
    assert said == ["builds the environment of tiny-tool>=1"]
    code = "import tiny_tool; print(tiny_tool.VERSION)"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout == "1.2\n"
    (one,) = built_environments.built()
    assert (one.digest, one.requirements, one.size > 0) == (found.digest, ("tiny-tool>=1",), True)
    built_environments.remove(found.digest)
    assert built_environments.built() == []


def test_the_resolution_stays_until_the_requirements_change(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheel(wheels, "1.2")
    first = environments.resolve(wanted(wheels))
    wheel(wheels, "1.3")
    assert environments.resolve(wanted(wheels)) == first
    newer = environments.resolve(wanted(wheels, "tiny-tool>=1.3"))
    assert newer.packages[0].startswith("tiny-tool==1.3 ")
    assert newer.digest != first.digest
    pinned = newer.document() | {"requirements": ["tiny-tool>=1"], "packages": list(newer.packages)}
    assert environments.resolve(wanted(wheels), pinned).packages == newer.packages, "the lock comes first"
    assert environments.resolve(wanted(wheels, "tiny-tool<1.3"), pinned).packages == first.packages


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_resolve_is_told_in_the_words_of_the_resolver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    choose(backend, monkeypatch)
    wheel(tmp_path / "wheels", "1.2")
    with pytest.raises(MachineError) as caught:
        environments.resolve(wanted(tmp_path / "wheels", "tiny-tool>=2"))
    assert caught.value.message.startswith("the environment does not resolve:\n    ")
    assert "tiny-tool>=2" in caught.value.message
    assert caught.value.help == (
        "change `requirements`, or name where packages come from with `index` and `find_links`"
    )  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_network_the_remedy_is_a_wheelhouse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    choose(backend, monkeypatch)
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(MachineError) as caught:
        environments.resolve(Wanted(("tiny-tool>=1",), index="http://127.0.0.1:9/simple"))
    assert caught.value.message.startswith("the environment does not resolve:\n    ")
    assert caught.value.help == (
        "check the network and the address of the package index, "
        "or name a folder of wheels with `find_links` and `index: none`"
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_offline_only_a_wheelhouse_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    choose(backend, monkeypatch)
    monkeypatch.setenv("RUNNER_OFFLINE", "1")
    wheel(tmp_path / "wheels", "1.2")
    assert environments.resolve(wanted(tmp_path / "wheels")).packages[0].startswith("tiny-tool==1.2 ")
    with pytest.raises(MachineError) as caught:
        environments.resolve(Wanted(("tiny-tool-that-is-nowhere>=1",)))
    assert caught.value.message.startswith("the environment does not resolve:\n    ")
    assert caught.value.help == "leave out `--offline`, or name a folder of wheels with `find_links` and `index: none`"


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    choose(backend, monkeypatch)
    wheel(tmp_path / "wheels", "1.2")
    found = environments.resolve(wanted(tmp_path / "wheels"))
    found = replace(found, packages=(f"tiny-tool==1.2 --hash=sha256:{'0' * 64}",))  # other bytes are there
    with pytest.raises(MachineError) as caught:
        built_environments.ensure(found, lambda text: None)
    assert caught.value.message.startswith("the environment cannot be built:\n    ")
    assert not built_environments.path_of(found).exists()
    assert [path.name for path in environments.folder().iterdir() if path.suffix == ".txt"] == []


def test_without_uv_only_this_python_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "uv", lambda: None)
    with pytest.raises(MachineError) as caught:
        environments.resolve(replace(Wanted(("tiny-tool",)), python="3.9"))
    here = Wanted(()).version
    assert caught.value.render() == (
        f"error: the environment asks for Python 3.9; without uv only {here} is here\n"
        "help: `pip install uv`, or leave out `python`"
    )


def test_hashes_are_read_as_every_pip_reports_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip 22.2 to 23.0 have "hash" alone; a folder or a repository has neither."""
    choose("pip", monkeypatch)
    archive: dict[str, object] = {"hash": "sha256=" + "a" * 64}
    entry = {"metadata": {"name": "Tiny-Tool", "version": "1.0"}, "download_info": {"archive_info": archive}}
    monkeypatch.setattr(environments, "run", lambda *_: json.dumps({"install": [entry]}))
    assert environments.resolve(wanted(tmp_path)).packages == ("tiny-tool==1.0 --hash=sha256:" + "a" * 64,)
    archive["hashes"] = {"sha256": "b" * 64}
    assert environments.resolve(wanted(tmp_path, "tiny-tool")).packages == ("tiny-tool==1.0 --hash=sha256:" + "b" * 64,)
    archive.clear()
    with pytest.raises(MachineError) as refused:
        environments.resolve(wanted(tmp_path, "tiny-tool==1"))
    assert (refused.value.message, refused.value.help) == (
        "the environment cannot be pinned: pip knows no sha256 of `tiny-tool`",
        "take it from a package index, not from a folder or a repository",
    )

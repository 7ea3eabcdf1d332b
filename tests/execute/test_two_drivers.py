"""Two processes apply jobs with a shared step at the same time: each has its own store, and both one remote store."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.execute import driving
from tests.execute.applying import KINDS
from tests.execute.ray_machines import Machines, command_lines, missing
from tests.execute.shipping import applied
from tests.execute.test_ray import digests
from tests.job import s3_server

needs_s3 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("s3fs", "moto"))), reason="s3fs or moto is not installed"
)
needs_machines = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def local(folder: Path, count: int) -> dict[str, str]:
    """Return the digests of a run on this machine, without the lines that it leaves."""
    applied(driving.plans(folder, count), folder / "local", None)
    for path in folder.glob("trace-*"):
        path.unlink()
    return digests(folder / "local")


@pytest.mark.filterwarnings("ignore")
def test_a_shared_step_runs_once_with_a_folder_as_remote_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(KINDS))
    expected = local(tmp_path, 2)
    options = ("--count", "2", "--remote", f"file://{tmp_path}/remote")
    drivers = [driving.start(tmp_path, tmp_path / name, *options) for name in ("first", "second")]
    for driver in drivers:
        _, errors = driver.communicate(timeout=300)
        assert driver.returncode == 0, errors
    assert driving.repeated(tmp_path) == []
    assert digests(tmp_path / "first") == digests(tmp_path / "second") == expected
    assert not list((tmp_path / "remote" / "claims").glob("*/*.json"))


def leaked(folder: Path) -> list[str]:
    """Return the files, Ray's logs among them, that hold the secret of the store and of the Hub."""
    secret = s3_server.SECRET.encode()
    return sorted(str(path) for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes())


@needs_s3
@needs_machines
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_ray_on_machines_with_separate_folders_and_a_store_on_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three machines with addresses and folders of their own, twelve jobs, and two drivers at once."""
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(KINDS))
    expected = local(tmp_path, 12)
    hidden = [tmp_path / name for name in ("first", "second", "local")]
    with Machines(tmp_path, workers=3, hidden=hidden) as machines, s3_server.s3_server(machines.gateway) as url:
        variables = {**s3_server.credentials(url), "HF_TOKEN": s3_server.SECRET}
        machines.start_ray(variables)
        options = ("--count", "12", "--address", machines.address, "--remote", "s3://bucket/store")
        drivers = [
            driving.start(tmp_path, jobs, *options, prefix=machines.on_head(), variables=variables)
            for jobs in hidden[:2]
        ]
        for driver in drivers:
            _, errors = driver.communicate(timeout=900)
            assert driver.returncode == 0, errors
        shown = "".join(map(str, command_lines()))
        assert s3_server.SECRET not in shown
        used = [path.name for path in (tmp_path / "nodes").iterdir() if list(path.glob("store/*/record.json"))]
    assert leaked(tmp_path) == []
    assert driving.repeated(tmp_path) == []
    assert digests(tmp_path / "first") == digests(tmp_path / "second") == expected
    assert len(expected) == 25
    assert sorted(used) == ["1", "2", "3"]


@needs_machines
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_ray_on_machines_with_addresses_of_their_own_and_a_shared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(KINDS))
    expected = local(tmp_path, 12)
    with Machines(tmp_path, workers=3) as machines:
        machines.start_ray({})
        options = ("--count", "12", "--address", machines.address)
        driver = driving.start(tmp_path, tmp_path / "jobs", *options, prefix=machines.on_head())
        _, errors = driver.communicate(timeout=900)
        assert driver.returncode == 0, errors
    assert driving.repeated(tmp_path) == []
    assert digests(tmp_path / "jobs") == expected

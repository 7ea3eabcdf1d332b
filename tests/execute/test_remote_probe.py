"""Whether another machine uses the same remote store, here one that is a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import StoreError
from runner.execute import remote_probe
from runner.job.remote import Remote


def test_a_store_that_both_machines_use(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/remote"
    with remote_probe.left(url) as name:
        assert remote_probe.fault(url, name) is None
    assert Remote(url).names("probes") == []


def test_a_folder_of_the_same_name_on_another_machine(tmp_path: Path) -> None:
    other = f"file://{tmp_path}/other"
    with remote_probe.left(f"file://{tmp_path}/remote") as name:
        assert remote_probe.fault(other, name) == f"{other} is another store there"


def test_a_store_that_is_not_reached(tmp_path: Path) -> None:
    (tmp_path / "remote").write_text("a file where the store would be")
    url = f"file://{tmp_path}/remote"
    with pytest.raises(StoreError) as caught, remote_probe.left(url):
        pass
    assert caught.value.render() == (
        f"error: the remote store {url} cannot be reached or written: [Errno 20] Not a directory: "
        f"'{tmp_path}/remote/probes'\n"
        "help: check its address and credentials"
    )
    assert remote_probe.fault("s4://bucket/store", "probes/x") == (
        "the remote store s4://bucket/store cannot be opened: Protocol not known: s4"
    )

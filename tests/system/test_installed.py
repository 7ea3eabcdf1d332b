"""Names and versions of packages are those that importlib reads."""

from __future__ import annotations

import importlib.metadata

import pytest

from runner.system import installed


def test_packages_have_the_names_and_versions_that_importlib_gives() -> None:
    expected: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        name = found.metadata["Name"]
        if name:
            expected.setdefault(name.lower().replace("_", "-"), found.version)
    assert installed.versions() == expected
    assert {name: installed.version(name) for name in expected} == expected


def test_a_package_that_is_not_there() -> None:
    assert installed.version("no-such-package") is None


def test_a_half_removed_package_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(importlib.metadata.Distribution):
        def read_text(self, filename: str) -> str | None:
            return None

        def locate_file(self, path: object) -> None:  # type: ignore[override]
            return None

    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [Half()])
    assert installed.versions() == {}

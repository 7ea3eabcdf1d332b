"""The lock as data: what it holds, and what it calls drift."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.plan import lock

A, B = "a" * 64, "b" * 64
LOCK: dict[str, Any] = {
    "version": 1,
    "runner": "0.1.0",
    "seed": 0,
    "models": {
        "folder": {"digest": A, "files": {"config.json": A, "model.safetensors": A}},
        "org/name@main": {"commit": "1" * 40},
    },
    "data": {"demo:stdlib#train": {"digest": A}, "org/texts#train": {"commit": "1" * 40}},
    "parents": {
        "git+https://h/r@v1#a.yaml": {"commit": "1" * 40, "digest": A},
        "pack:acme/int4": {"digest": A, "package": "acme-recipes 1.0"},
    },
    "packages": {"numpy": "2.0", "torch": "2.13.0"},
}


def changed(section: str, name: str, value: Any) -> dict[str, Any]:
    if not name:
        return {**LOCK, section: value}
    return {**LOCK, section: {**LOCK[section], name: value}}


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (changed("runner", "", "0.2.0"), "runner: 0.1.0 → 0.2.0"),
        (changed("seed", "", 3), "seed: 0 → 3"),
        (
            changed("models", "folder", {"digest": B, "files": {"config.json": A, "model.safetensors": B}}),
            "model folder: model.safetensors aaaaaaaaaaaa → bbbbbbbbbbbb",
        ),
        (
            changed("models", "folder", {"digest": B, "files": {"tokenizer.json": B, "model.safetensors": A}}),
            "model folder: config.json is gone, tokenizer.json is new",
        ),
        (
            changed("models", "folder", {"digest": B, "files": {f"model-{n}.safetensors": B for n in range(9)}}),
            (
                "model folder: config.json is gone, model-0.safetensors is new, model-1.safetensors is new, "
                "model-2.safetensors is new, 7 more files"
            ),
        ),
        (
            changed("models", "org/name@main", {"commit": "2" * 40}),
            "model org/name@main: commit 111111111111 → 222222222222",
        ),
        (
            changed("models", "org/name@main", {"digest": A}),
            "model org/name@main: a commit of the Hub is now a local folder",
        ),
        (changed("models", "folder", {"commit": "2" * 40}), "model folder: now on the Hub"),
        (changed("models", "other", {"digest": A}), "model other: not in the lock"),
        (
            changed("data", "demo:stdlib#train", {"digest": B}),
            "data demo:stdlib#train: digest aaaaaaaaaaaa → bbbbbbbbbbbb",
        ),
        (
            changed("data", "org/texts#train", {"commit": "2" * 40}),
            "data org/texts#train: commit 111111111111 → 222222222222",
        ),
        (
            changed("parents", "git+https://h/r@v1#a.yaml", {"commit": "2" * 40, "digest": B}),
            "parent git+https://h/r@v1#a.yaml: commit 111111111111 → 222222222222, digest aaaaaaaaaaaa → bbbbbbbbbbbb",
        ),
        (
            changed("parents", "pack:acme/int4", {"digest": B, "package": "acme-recipes 1.1"}),
            "parent pack:acme/int4: acme-recipes 1.0 → acme-recipes 1.1, digest aaaaaaaaaaaa → bbbbbbbbbbbb",
        ),
        (changed("packages", "torch", "2.14.0"), "package torch: 2.13.0 → 2.14.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_drift_has_its_line(now: dict[str, Any], line: str) -> None:
    assert [found.line() for found in lock.drift(LOCK, now)] == [line]


def test_what_is_only_in_the_lock_is_no_drift() -> None:
    assert lock.drift(LOCK, {**LOCK, "parents": {}, "data": {}}) == []


def test_files_are_compared_only_where_both_know_them() -> None:
    bare = changed("models", "folder", {"digest": A})
    assert lock.drift(bare, LOCK) == lock.drift(LOCK, bare) == []


ENTRIES = st.dictionaries(
    st.sampled_from([*lock.flat(LOCK)]), st.sampled_from([{"digest": A}, {"digest": B}, {"commit": "1" * 40}])
)


@given(ENTRIES)
def test_flat_and_nested_are_inverse(entries: dict[lock.Entry, Any]) -> None:
    assert lock.flat(lock.nested(entries)) == entries


@given(ENTRIES, ENTRIES)
def test_nothing_drifts_from_itself_and_everything_else_does(
    old: dict[lock.Entry, Any], new: dict[lock.Entry, Any]
) -> None:
    assert lock.drift(lock.nested(old), lock.nested(old)) == []
    found = {drift.entry for drift in lock.drift(lock.nested(old), lock.nested(new))}
    assert found == {entry for entry, value in new.items() if old.get(entry) != value}


def test_what_upgrade_means() -> None:
    entries = list(lock.flat(LOCK))
    aliases = {"model": ("models", "folder"), "text": ("data", "demo:stdlib#train")}

    def chosen(name: str) -> set[lock.Entry]:
        return lock.selected(name, entries, aliases)

    assert chosen("torch") == chosen("packages/torch") == {("packages", "torch")}
    assert chosen("model") == chosen("models/folder") == {("models", "folder")}
    assert chosen("text") == {("data", "demo:stdlib#train")}
    assert chosen("acme/int4") == {("parents", "pack:acme/int4")}
    assert chosen("seed") == {("seed", "")}
    for name, message in [
        ("org/", "`org/` may be `org/name@main` or `org/texts#train`"),
        ("torhc", "the lock has no `torhc`; did you mean `torch`?"),
    ]:
        with pytest.raises(LookupError) as caught:
            chosen(name)
        assert str(caught.value) == message

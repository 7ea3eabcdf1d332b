"""The machine as evidence, and what of it may have made other bytes."""

from __future__ import annotations

from runner.job import environment


def test_what_may_make_other_bytes_is_named() -> None:
    before = environment.facts("cpu", 8) | {"instructions": ["avx2", "avx512f", "avx512_bf16"], "cpu": "A"}
    now = environment.facts("cpu", 2) | {"instructions": [], "cpu": "B"}
    before["packages"] = {"numpy": "2.3.0", "torch": "2.13.0", "runner": "0.1.0"}
    now["packages"] = {"numpy": "2.4.6", "torch": "2.13.0", "runner": "0.2.0", "six": "1.17.0"}
    assert environment.changes(before, now) == [
        "threads 8 → 2", "processor A → B", "its instructions avx2, avx512f, avx512_bf16 → none",
        "numpy 2.3.0 → 2.4.6", "six absent → 1.17.0",
    ]  # fmt: skip
    assert environment.changes(before, before) == []


def test_a_record_from_before_instructions_were_kept() -> None:
    before = environment.facts("cpu", 2)
    del before["instructions"]
    assert environment.changes(before, environment.facts("cpu", 2)) == []

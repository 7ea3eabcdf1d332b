"""Keys: canonical text, and what does and does not change them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.data.image_records import packages
from runner.plan import keys
from runner.plan.types import ResolvedData
from runner.recipe.types import DataSpec, Step

STEP = Step("gptq", "quantize.gptq", {"data": "calibration", "bits": 4, "gates": {"x": {"max": 1}}, "against": "model"})
DATA = ResolvedData(DataSpec("calibration", "a.jsonl", None, 512, 128), (Path("/a.jsonl"),), None, "d1", 10)


def inputs(step: Step = STEP, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "version": 1, "seed": 5, "references": ("data", "gates", "against"),
        "inputs": {"checkpoint": "k", "against": "m"},
        "data": {"data": DATA}, "environment": {"torch": "2.13.0", "device": "cpu"},
    }  # fmt: skip
    return keys.key_inputs(step, **(values | changes))


def test_canonical() -> None:
    value = MappingProxyType({"b": (1, 2.0, 1e-4), "a": {"ü": None, "t": True}})
    assert keys.canonical(value) == '{"a":{"t":true,"ü":null},"b":[1,2.0,0.0001]}'


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()))
def test_order_does_not_matter(value: dict[str, Any]) -> None:
    assert keys.canonical(value) == keys.canonical(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_nan(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        keys.canonical({"a": value})


def test_keys_of_mappings_are_text() -> None:
    with pytest.raises(TypeError, match="must be strings"):
        keys.canonical({1: 2})


def test_seed() -> None:
    found = keys.step_seed(0, "gptq")
    assert found == int(hashlib.sha256(b"0/gptq").hexdigest()[:16], 16) >> 1
    assert 0 <= found < 2**63
    assert len({keys.step_seed(s, i) for s in (0, 1) for i in ("a", "b")}) == 4


def test_names_and_gates_are_no_part() -> None:
    found = inputs()
    assert found["params"] == {"bits": 4}
    renamed = replace(STEP, params={**STEP.params, "data": "other", "gates": None, "against": "prune"})
    assert keys.sha256(inputs(renamed)) == keys.sha256(found)


def test_the_place_of_a_file_is_no_part() -> None:
    moved = replace(DATA, spec=replace(DATA.spec, name="n", source="b.jsonl", split="s"), files=(Path("/b.jsonl"),))
    assert inputs(data={"data": moved}) == inputs()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"seed": 6},
        {"inputs": {"checkpoint": "k2", "against": "m"}},
        {"inputs": {"checkpoint": "m", "against": "k"}},
        {"environment": {"torch": "2.14.0", "device": "cpu"}},
        {"environment": {"torch": "2.13.0", "device": "cuda"}},
        {"data": {"data": replace(DATA, digest="d2")}},
        {"data": {"data": replace(DATA, spec=replace(DATA.spec, samples=64))}},
        {"data": {"data": replace(DATA, spec=replace(DATA.spec, samples=None))}},
        {"data": {"data": replace(DATA, spec=replace(DATA.spec, sequence_length=256))}},
        {"data": {"data": replace(DATA, spec=replace(DATA.spec, packing="joined"))}},
        {"data": {"data": replace(DATA, spec=replace(DATA.spec, field="body"))}},
        {"step": replace(STEP, params={**STEP.params, "bits": 3})},
        {"step": replace(STEP, kind="quantize.rtn")},
    ],
)
def test_what_changes_a_key(changes: dict[str, Any]) -> None:
    assert keys.sha256(inputs(**changes)) != keys.sha256(inputs())


def test_fields_do_not_matter_to_plain_text() -> None:
    text = replace(DATA, files=(Path("/a.txt"),))
    other = replace(text, spec=replace(text.spec, field="body"))
    assert keys.data_inputs(text) == keys.data_inputs(other)


def test_the_split_of_a_hub_dataset_matters() -> None:
    hub = replace(DATA, files=())
    assert keys.data_inputs(hub) != keys.data_inputs(replace(hub, spec=replace(hub.spec, split="test")))


def test_images_and_what_decodes_them_are_part_of_the_key() -> None:
    """Another field or another release of Pillow gives other pixels; data without images keeps its keys."""
    seen = replace(DATA, spec=replace(DATA.spec, images="photo"))
    found = keys.data_inputs(seen)
    assert found["images"] == "photo"
    assert found["packages"] == packages()
    assert keys.data_inputs(DATA) == {k: v for k, v in found.items() if k not in ("images", "packages")}

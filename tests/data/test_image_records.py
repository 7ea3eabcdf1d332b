"""Records of text and images: which are accepted, and the messages about the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.data.image_records import as_messages, check_images, image_records
from runner.errors import MachineError, RecipeError
from runner.recipe.types import DataSpec

PHOTO, TEXT = {"type": "image"}, {"type": "text", "text": "a"}


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    (tmp_path / "a.png").write_bytes(b"no image")
    return DataSpec("photos", str(tmp_path / "d.jsonl"), None, 32, images="image")


def read(spec: DataSpec, *rows: Any) -> Any:
    path = Path(spec.source)
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return image_records(spec, [path])


def refusal(spec: DataSpec, *rows: Any) -> tuple[str, str]:
    with pytest.raises(RecipeError) as caught:
        read(spec, *rows)
    [found] = caught.value.diagnostics
    return found.code, found.message.replace(str(Path(spec.source).parent) + "/", "")


def test_images_go_where_they_are_placed_or_before_the_text(spec: DataSpec) -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is it?"}]
    placed = [{"role": "user", "content": [TEXT, PHOTO]}]
    rows = read(spec, {"image": "a.png", "text": "a"}, {"image": ["a.png"], "text": chat},
                {"image": "a.png", "text": placed}, {"image": None, "text": "alone"})  # fmt: skip
    assert as_messages(rows[0]) == ({"role": "user", "content": [PHOTO, TEXT]},)
    assert [m["content"][0]["type"] for m in as_messages(rows[1])] == ["text", "image"]
    assert as_messages(rows[2]) == ({"role": "user", "content": [TEXT, PHOTO]},)
    assert [len(row.images) for row in rows] == [1, 1, 1, 0]
    assert len(read(replace(spec, samples=1), {"image": "a.png", "text": "a"}, {"text": "b"})) == 1


def test_what_is_refused(spec: DataSpec, tmp_path: Path) -> None:
    one = {"image": "a.png", "text": "a"}
    assert refusal(spec, {"text": "a"}) == ("R662", "data `photos`: no record has an image under `image`")
    assert refusal(replace(spec, packing="joined"), one)[0] == "R662"
    assert refusal(spec, {"image": "b.png", "text": "a"}) == ("R663", "`d.jsonl` line 1: there is no image `b.png`")
    assert (
        refusal(spec, {"image": 3, "text": "a"})[1]
        == "`d.jsonl` line 1: `image` must hold the path of an image; it holds 3"
    )
    assert refusal(spec, {"image": "a.png", "texts": "a"}) == (
        "R462", "`d.jsonl` line 1: `text` must be text or messages; it is not there; it has `image` and `texts`"
    )  # fmt: skip
    two = [{"role": "user", "content": [PHOTO, PHOTO, TEXT]}]
    assert refusal(spec, {"image": "a.png", "text": two}) == (
        "R664", "`d.jsonl` line 1: `text` places 2 images; the record names 1"
    )  # fmt: skip
    answer = [{"role": "assistant", "content": "a"}]
    assert refusal(spec, {"image": "a.png", "text": answer})[0] == "R664"
    sound = [{"role": "user", "content": [{"type": "audio"}]}]
    assert refusal(spec, {"image": "a.png", "text": sound})[0] == "R664"
    text = tmp_path / "d.txt"
    text.write_text("a")
    with pytest.raises(RecipeError) as caught:
        image_records(spec, [text])
    assert caught.value.diagnostics[0].code == "R662"


def test_a_file_that_is_no_image(spec: DataSpec) -> None:
    pytest.importorskip("PIL")
    with pytest.raises(RecipeError) as caught:
        check_images(read(spec, {"image": "a.png", "text": "a"}))
    [found] = caught.value.diagnostics
    assert found.code == "R663"
    assert "cannot be read: cannot identify image file" in found.message


def test_without_pillow(spec: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MachineError) as caught:
        check_images(read(spec, {"image": "a.png", "text": "a"}))
    assert caught.value.message == "reading images needs the package pillow, which is not installed"
    assert caught.value.help == "`pip install 'runner[images]'`"

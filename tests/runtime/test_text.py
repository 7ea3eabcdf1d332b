"""Text to ids and back, a piece at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runner.errors import StepFailed
from runner.runtime.text import Text

MODEL = Path(__file__).parents[2] / "runner" / "demo" / "models" / "tiny-llama"


def test_pieces_are_whole_characters_and_make_up_the_text() -> None:
    text = Text(MODEL)
    written = "def naïve(x):\n    return 'ß€😀'  # two  spaces\n"
    ids = text.ids(written)[0].tolist()
    pieces = list(text.pieces(ids))
    assert "".join(pieces) == written
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_text_that_ends_inside_a_character_is_told_all_the_same() -> None:
    text = Text(MODEL)
    ids = text.ids("a 😀")[0].tolist()
    assert "".join(text.pieces(ids[:-1])).startswith("a ")


def test_pieces_come_as_soon_as_their_token() -> None:
    text = Text(MODEL)
    ids = text.ids("return value")[0].tolist()
    taken: list[int] = []

    def given() -> object:
        for id in ids:
            taken.append(id)
            yield id

    pieces = text.pieces(given())  # type: ignore[arg-type]
    next(pieces)
    assert len(taken) < len(ids)


def test_ends_are_those_of_all_configs(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    assert Text(folder).ends() == {2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert Text(folder).ends() == {2, 7}


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(StepFailed) as caught:
        Text(tmp_path)
    assert caught.value.message.startswith(
        f"`{tmp_path}` has no tokenizer.json, and transformers finds no other tokenizer there: "
    )
    assert caught.value.help == "download the tokenizer into that folder"


def test_chat(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    with pytest.raises(StepFailed) as caught:
        Text(folder).chat_ids("hi")
    assert caught.value.message == f"the tokenizer in `{folder}` has no chat template"
    assert caught.value.help == "leave `--chat` out: the prompt is then the beginning of a text"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    text = Text(folder)
    assert "".join(text.pieces(text.chat_ids("hi")[0].tolist())) == "user: hi\nassistant:"

"""The one rule that makes windows of tokens out of text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.data import windows
from runner.data.documents import documents_of
from runner.data.tokenizer import Tokenizer
from runner.errors import RecipeError
from runner.model.source import locate
from runner.recipe.types import DataSpec, ModelSpec


def spec(split: str = "calibration", **changes: Any) -> DataSpec:
    fields: dict[str, Any] = {"name": "text", "source": "demo:stdlib", "split": split, "sequence_length": 512}
    return DataSpec(**(fields | changes))


@pytest.fixture(scope="module")
def model() -> Path:
    folder, _ = locate.locate_model(ModelSpec("demo:tiny-llama"))
    assert folder is not None
    return folder


@pytest.mark.parametrize(("split", "tokens", "count"), [("calibration", 142_662, 278), ("evaluation", 171_490, 334)])
def test_the_embedded_text(model: Path, split: str, tokens: int, count: int) -> None:
    entry = spec(split)
    files = locate.locate_data(entry).files
    assert len(windows.tokens(entry, documents_of(entry, files), Tokenizer(model))) == tokens
    ids = windows.windows(entry, files, model)
    assert ids.shape == (count, 512)
    assert ids.dtype == np.dtype("int64")


@pytest.mark.parametrize("packing", ["documents", "joined"])
def test_samples_are_the_first_windows(model: Path, packing: str) -> None:
    files = locate.locate_data(spec()).files
    whole = windows.windows(spec(packing=packing), files, model)
    for samples in (1, 7, 128):
        some = windows.windows(spec(packing=packing, samples=samples), files, model)
        assert np.array_equal(some, whole[:samples])


def test_documents_are_framed(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "import os"}\n{"text": "def f(): pass"}\n')
    tokenizer = Tokenizer(model)
    one, two = tokenizer.encode(["import os", "def f(): pass"], special=False)
    found = windows.tokens(spec(), documents_of(spec(), [path]), tokenizer)
    assert found.tolist() == [1, *one, 2, 1, *two, 2]
    joined = windows.tokens(spec(packing="joined"), documents_of(spec(), [path]), tokenizer)
    assert joined.tolist() == tokenizer.encode(["import os\n\ndef f(): pass"], special=True)[0]


@pytest.mark.parametrize(
    ("declared", "generation", "config", "expected"),
    [
        ({"bos_token": "<s>", "eos_token": {"content": "</s>"}}, {}, {}, (1, 2)),
        ({"bos_token": None}, {"bos_token_id": 1, "eos_token_id": [2, 3]}, {}, (None, 2)),
        ({}, {}, {"bos_token_id": 1, "eos_token_id": 3}, (1, 3)),
        ({}, {}, {}, (None, None)),
    ],
)
def test_special_tokens(
    model: Path, tmp_path: Path, declared: Any, generation: Any, config: Any, expected: tuple[int | None, int | None]
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    for name, content in (("tokenizer_config", declared), ("generation_config", generation), ("config", config)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.eos) == expected


@pytest.mark.parametrize(("token", "shown"), [("<end>", '"<end>"'), ({}, "a mapping")])
def test_a_special_token_that_is_not_in_the_vocabulary(model: Path, tmp_path: Path, token: Any, shown: str) -> None:
    """transformers would add it, beyond the rows of the embedding."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": token}))
    with pytest.raises(RecipeError) as caught:
        Tokenizer(folder)
    assert [(d.code, d.message, d.help) for d in caught.value.diagnostics] == [(
        "R448",
        f"the tokenizer in `{folder}` has no token for its `eos_token`, {shown}",
        "correct tokenizer_config.json or special_tokens_map.json, or download the tokenizer again",
    )]  # fmt: skip


@pytest.mark.parametrize("decoder", [False, True])
def test_the_legacy_map_of_special_tokens(model: Path, tmp_path: Path, decoder: bool) -> None:
    """special_tokens_map.json goes before tokenizer_config.json, unless that lists `added_tokens_decoder`."""
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(model, tmp_path / "model"))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("added_tokens_decoder", None)
    if decoder:
        config["added_tokens_decoder"] = {"3": {"content": "<pad>", "special": True}}
    path.write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<pad>"}}')
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert (ours.bos, ours.eos) == (theirs.bos_token_id, theirs.eos_token_id) == (1, 2 if decoder else 3)


def message(entry: DataSpec, files: list[Path], folder: Path) -> tuple[str, str, str | None]:
    with pytest.raises(RecipeError) as caught:
        windows.windows(entry, files, folder)
    [found] = caught.value.diagnostics
    return found.code, found.message, found.help


def test_less_than_one_window(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("import os")
    assert message(spec(), [tmp_path / "a.txt"], model) == (
        "R464",
        "data `text` asks for 1 window of 512 tokens = 512; the text has 4 (0 windows)",
        "lower `sequence_length` to 4, or name a longer text",
    )


def test_tokenizer_of_another_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    code, text, help = message(spec(samples=1), list(locate.locate_data(spec()).files), tmp_path)
    assert (code, help) == ("R448", "download model and tokenizer together")
    assert text.endswith("; config.json has `vocab_size` = 100, so the two do not belong together")


def test_broken_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"tokenizer\.json` cannot be read: "):
        Tokenizer(tmp_path)


def test_a_text_that_is_too_short_says_how_much_there_is() -> None:
    found = windows.too_short(spec(samples=128), 41_222)
    assert found.message == (
        "data `text` asks for 128 windows of 512 tokens = 65,536; the text has 41,222 (80 windows)"
    )
    assert found.help == "lower `samples` to 80, or name a longer text"

"""Special tokens that the vocabulary does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.model.architecture import inspect, token_ids
from tests.model.checkpoints import LLAMA, write

HELP = (
    "give the number that the tokenizer has for it, or null; a token that was added needs a row: "
    "`model.resize_token_embeddings(...)` before saving"
)


def complaints(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> list[tuple[str, str | None]]:
    write(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA | config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    found = token_ids.complaints(inspect.facts(folder, "m"), folder)
    assert {each.code for each in found} <= {"R445"}
    return [(each.message, each.help) for each in found]


@pytest.mark.parametrize(("config", "generation"), [
    ({"eos_token_id": [2, 31], "pad_token_id": -1}, None), ({"bos_token_id": None}, {"eos_token_id": 31}), ({}, {}),
])  # fmt: skip
def test_tokens_of_the_vocabulary(tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> None:
    assert complaints(tmp_path, config, generation) == []


def test_every_id_beyond_the_vocabulary_is_named(tmp_path: Path) -> None:
    end = "of `m` is {}; the vocabulary has 32 tokens, 0 to 31"
    assert complaints(tmp_path, {"eos_token_id": [2, 32], "bos_token_id": "1"}, {"pad_token_id": 99}) == [
        (
            '`bos_token_id` in config.json of `m` must be the number of a token; it is "1"',
            "give the number that the tokenizer has for it, or null",
        ),
        ("`eos_token_id`[1] in config.json " + end.format(32), HELP),
        ("`pad_token_id` in generation_config.json " + end.format(99), HELP),
    ]

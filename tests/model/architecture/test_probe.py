"""Asking transformers about a checkpoint: by a process of its own, once, and what is then complained of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.contracts import model_description
from runner.contracts.model_description import ModelDescription, Problem
from runner.errors import MachineError
from runner.model.architecture import model_complaints, probe
from runner.model.checkpoint import headers
from tests.model import checkpoints


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return checkpoints.write(tmp_path / "model")


@pytest.fixture
def asked() -> Iterator[list[probe.Request]]:
    """The requests that were answered, and not out of the cache."""
    requests: list[probe.Request] = []
    before = probe._answer

    def answer(request: probe.Request) -> probe.Answer:
        requests.append(request)
        return model_description.to_json(ModelDescription(architecture=f"Number{len(requests)}"))

    probe.answer_with(answer)
    yield requests
    probe.answer_with(before)


def describe(folder: Path) -> ModelDescription:
    return probe.description(folder, headers.read_headers(folder))


@pytest.mark.nightly
def test_a_process_of_its_own_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe(folder)
    monkeypatch.setattr(probe, "_answer", probe._ask)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "other"))
    assert describe(folder) == here
    assert (here.architecture, here.layers, here.layer_count) == ("LlamaForCausalLM", "model.layers", 4)


def test_it_is_asked_once_until_something_changes(folder: Path, asked: list[probe.Request]) -> None:
    assert describe(folder).architecture == describe(folder).architecture == "Number1"
    (folder / "config.json").write_text(json.dumps(checkpoints.LLAMA | {"rms_norm_eps": 1e-5}))
    assert describe(folder).architecture == "Number2"
    (folder / "generation_config.json").write_text("{}")
    assert describe(folder).architecture == "Number3"
    checkpoints.write(folder, {**checkpoints.llama_shapes(), "score.weight": ("BF16", [8])})
    assert describe(folder).architecture == "Number4"
    (folder / "README.md").write_text("nothing that transformers reads")
    assert describe(folder).architecture == "Number4"
    assert len(asked) == 4


def test_a_cache_that_cannot_be_read_or_written_is_done_without(folder: Path, asked: list[probe.Request]) -> None:
    describe(folder)
    (cached,) = (folder.parent / "cache" / "runner" / "models").glob("*.json")
    cached.write_text('{"architecture": "Half')
    assert describe(folder).architecture == "Number2"
    cached.unlink()
    cached.mkdir()
    assert describe(folder).architecture == "Number3"


def test_a_process_that_fails_is_a_fault_of_the_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_answer", probe._ask)
    monkeypatch.setattr(probe, "_RUN", "import sys; sys.exit('no torch here')")
    with pytest.raises(MachineError) as caught:
        describe(folder)
    assert caught.value.message == (
        "transformers cannot be asked about the model: runner.model.layerwise.describe ended with 1: no torch here"
    )


_VALUE = "{}\nhelp: correct that value, or download config.json again"


def rendered(found: ModelDescription, config: dict[str, Any] = checkpoints.LLAMA) -> list[str]:
    return [each.render() for each in model_complaints.complaints(found, {}, config, "m")]


def test_refusals_say_the_key_and_the_words_of_transformers() -> None:
    assert rendered(
        ModelDescription(
            problems=(
                Problem("config", "TypeError", "TypeError: no int", ("hidden_size",)),
                Problem("model", "KeyError", "KeyError: 'foo'", ()),
                Problem("forward", "ValueError", "ValueError: shapes", ("hidden_size", "vocab_size")),
                Problem("generation", "JSONDecodeError", "JSONDecodeError: line 1", ()),
            )
        )
    ) == [
        _VALUE.format("error[R453]: transformers refuses config.json of `m`, `hidden_size` = 8: TypeError: no int"),
        "error[R453]: transformers cannot build the model of `m`: KeyError: 'foo'\nhelp: download config.json again",
        _VALUE.format(
            "error[R453]: transformers cannot run the model of `m`, `hidden_size` = 8 or `vocab_size` = 32: "
            "ValueError: shapes"
        ),
        (
            "error[R454]: transformers cannot read generation_config.json of `m`: JSONDecodeError: line 1\n"
            "help: correct it, or remove it: it only holds defaults for generating text"
        ),
    ]


def test_a_config_of_another_model_is_refused_by_the_tensors(tmp_path: Path) -> None:
    config = checkpoints.LLAMA | {"num_hidden_layers": 6, "hidden_size": 16}
    folder = checkpoints.write(tmp_path / "model", config=config)
    tensors = headers.read_headers(folder)
    found = model_complaints.complaints(describe(folder), tensors, config, "m")
    assert found[0].render() == (
        "error[R406]: tensor `model.layers.4.self_attn.q_proj.weight` is missing from `m`\n"
        "help: the checkpoint is incomplete or was edited; download it again"
    )
    shape, other = [32, 8], [32, 16]
    assert (
        f"error[R407]: `model.embed_tokens.weight` is {shape} in model.safetensors, the model wants {other}\n"
        "help: config.json belongs to another model; download both together"
    ) in [each.render() for each in found]


def test_missing_tensors_are_counted_where_there_are_many() -> None:
    found = rendered(ModelDescription(missing=tuple(f"model.layers.{i}.weight" for i in range(20))))
    assert len(found) == 13
    assert found[0] == (
        "error[R406]: tensor `model.layers.0.weight` is missing from `m`\n"
        "help: the checkpoint is incomplete or was edited; download it again"
    )
    assert found[-1] == "error[R406]: 8 more tensors are missing"


def test_two_tensors_for_one_parameter_are_two_answers_to_one_question() -> None:
    (found,) = rendered(ModelDescription(duplicates={"transformer.h": ("h", "transformer.h")}))
    assert found == (
        "error[R414]: `h` and `transformer.h` both stand for `transformer.h` of the model\n"
        "help: remove the one that is not meant, or load the model with transformers and save it again"
    )


def test_a_tensor_that_nothing_uses_is_refused() -> None:
    (found,) = rendered(ModelDescription(unexpected=("score.weight",)))
    assert found == (
        "error[R415]: nothing in the model of `m` has a use for its tensor `score.weight`\n"
        "help: config.json belongs to another model, or load the model with transformers and save it again"
    )

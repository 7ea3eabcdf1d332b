"""Where models and data are found, and what is said where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.errors import RecipeError
from runner.model.source import hub, locate
from runner.recipe.types import DataSpec, ModelSpec
from tests.model.checkpoints import write, write_sharded
from tests.model.source.hub_server import COMMIT


def refused(call: Callable[[], Any]) -> tuple[str, str, str | None]:
    with pytest.raises(RecipeError) as caught:
        call()
    [found] = caught.value.diagnostics
    return found.code, found.message, found.help


def data(source_: str, split: str | None = None) -> DataSpec:
    return DataSpec("text", source_, split, 16)


def test_demo_model() -> None:
    path, commit = locate.locate_model(ModelSpec("demo:tiny-llama"))
    assert path is not None
    assert (path.name, (path / "config.json").is_file(), commit) == ("tiny-llama", True, None)


def test_unknown_demo_model() -> None:
    assert refused(lambda: locate.locate_model(ModelSpec("demo:tiny-lama"))) == (
        "R430",
        "there is no embedded model `demo:tiny-lama`; did you mean `tiny-llama`?",
        "there is `demo:tiny-llama`",
    )


def test_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in (str(folder), "org/name", "./org/name", "~/org/name"):
        assert locate.locate_model(ModelSpec(written)) == (folder, None)


@pytest.mark.parametrize("written", ["./none", "models/a/b", "gpt2", "../x"])
def test_no_such_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(lambda: locate.locate_model(ModelSpec(written))) == (
        "R430",
        f"there is no folder `{written}` in {tmp_path}",
        (
            "name a folder with config.json and safetensors files, a GGUF file, a Hub id such as `org/name`, or "
            "`demo:tiny-llama`"
        ),
    )


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    assert refused(lambda: locate.locate_model(ModelSpec(str(path)))) == (
        "R430",
        f"the model `{path}` is a file; a checkpoint is a folder",
        f"name `{tmp_path}`",
    )


def cache(root: Path, id: str = "org/name") -> Path:
    """A Hub cache that holds one model."""
    repo = root / f"models--{id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return repo / "snapshots" / COMMIT


def test_a_cached_hub_model_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "model_commit", lambda *_: pytest.fail("asked the network"))
    folder = write_sharded(cache(tmp_path))
    for revision in (None, "main", COMMIT):
        found = hub.cached_model("org/name", revision)
        if found is None:  # the default of `cache_dir` is bound when huggingface_hub is imported
            pytest.skip("this release of huggingface_hub does not look at the patched cache")
        assert (found, found.name) == (folder, COMMIT)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert hub.cached_model("org/name", None) is None


def test_the_adapter_of_a_cached_hub_model_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = write(cache(tmp_path))
    if hub.cached_model("org/name", None) is None:
        pytest.skip("this release of huggingface_hub does not look at the patched cache")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    assert hub.cached_model("org/name", None) is None
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    assert hub.cached_model("org/name", None) == folder


def test_what_is_fetched_of_a_hub_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights, what accompanies them and an adapter that it carries; no other formats in folders."""
    import huggingface_hub
    from huggingface_hub.utils._paths import filter_repo_objects

    wanted = [
        "config.json", "model-00001-of-00002.safetensors", "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    ]  # fmt: skip
    others = [
        "original/params.json", "onnx/config.json", "onnx/model.safetensors", "a16/config.json", "adaptive/config.json",
        "checkpoint-1/adapter_config.json", "training.safetensors",
    ]  # fmt: skip
    asked: list[Any] = []

    def snapshot(id: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        files = wanted + others
        asked.append(list(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)))
        return "there"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    hub.download_model("org/name", COMMIT, adapted=False)
    hub.download_small("org/name", COMMIT)
    assert asked == [wanted, [name for name in wanted if not name.endswith(".safetensors")]]


def test_hub_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    def fail(error: Exception) -> tuple[str, str, str | None]:
        def call() -> None:
            with hub.hub_errors_as_diagnostics("model", "org/name", "v1"):
                raise error

        return refused(call)

    assert fail(errors.OfflineModeIsEnabled("x")) == (
        "R431",
        "the model `org/name` at revision `v1` is not in the local cache, and HF_HUB_OFFLINE forbids the network",
        "unset HF_HUB_OFFLINE, or download it elsewhere and name its folder",
    )
    assert fail(ConnectionError("Name or service not known\nmore")) == (
        "R431",
        (
            "the model `org/name` at revision `v1` is not in the local cache, and the Hub cannot be reached: Name or "
            "service not known"
        ),
        "check the network, or download it elsewhere (`hf download org/name`) and name its folder",
    )
    assert fail(errors.HFValidationError("x"))[1] == "`org/name` is not an id of the Hub"


def test_hub_model_that_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cached_model", lambda *_: None)
    monkeypatch.setattr(hub, "model_commit", lambda *_: COMMIT)
    assert locate.locate_model(ModelSpec("org/name", "main")) == (None, COMMIT)


def test_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.txt", "train-2.jsonl", "notes.md"):
        (tmp_path / name).write_text("x")
    assert locate.locate_data(data("train.jsonl")).files == (tmp_path / "train.jsonl",)
    assert locate.locate_data(data("train.jsonl", "calibration")).files == (tmp_path / "train.jsonl",)
    names = [path.name for path in locate.locate_data(data(".")).files]
    assert names == ["test.txt", "train-2.jsonl", "train.jsonl"]
    assert [p.name for p in locate.locate_data(data(".", "train")).files] == ["train-2.jsonl", "train.jsonl"]


def test_demo_data() -> None:
    [file] = locate.locate_data(data("demo:stdlib", "calibration")).files
    assert file.name == "calibration.jsonl"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            data("demo:stdlb", "calibration"),
            ("R460", "there is no embedded text `demo:stdlb`; did you mean `stdlib`?", "there is `demo:stdlib`"),
        ),
        (
            data("demo:stdlib"),
            (
                "R466",
                "data `text`: `demo:stdlib` needs a `split`",
                "it has `calibration`, `evaluation` and `train`",
            ),
        ),
        (
            data("demo:stdlib", "evaluate"),
            (
                "R466",
                "data `text`: `demo:stdlib` has no split `evaluate`; did you mean `evaluation`?",
                "it has `calibration`, `evaluation` and `train`",
            ),
        ),
        (
            data("/nowhere/at/all.jsonl"),
            (
                "R460",
                "data `text`: there is no file or folder `/nowhere/at/all.jsonl`",
                "name a .jsonl, .txt or .parquet file, a folder of them, a Hub dataset (`org/name`) or `demo:stdlib`",
            ),
        ),
        (
            data("org/name"),
            ("R466", "data `text`: the Hub dataset `org/name` needs a `split`", "add `split: train`"),
        ),
    ],
)
def test_data_that_is_not_there(spec: DataSpec, expected: tuple[str, str, str]) -> None:
    assert refused(lambda: locate.locate_data(spec)) == expected


def test_data_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    assert refused(lambda: locate.locate_data(data(f"{tmp_path}/a.csv"))) == (
        "R460",
        (
            f"data `text`: `{tmp_path}/a.csv` has the suffix `.csv`; text is read from "
            "`.jsonl`, `.txt` and `.parquet` files"
        ),
        "convert it to .jsonl: one JSON object a line, the text under `text`",
    )


def test_hub_dataset_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "dataset_commit", lambda id, revision: COMMIT if id == "org/name" else None)
    found = locate.locate_data(data("org/name:raw", "test"))
    assert (found.files, found.commit, found.spec.revision) == ((), COMMIT, COMMIT)

"""Locates a recipe's model and data: embedded (`demo:NAME`), in a local folder, or on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from runner.errors import Diagnostic, RecipeError
from runner.model.source import gguf, hub
from runner.recipe.types import DataSpec, ModelSpec
from runner.wording import did_you_mean, ticked

DEMO = "demo:"
DATA_SUFFIXES = (".jsonl", ".txt", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DEMO_ROOT = Path(__file__).resolve().parents[2] / "demo"


@dataclass(frozen=True)
class DataLocation:
    """`files` on this machine, or none and the commit of a Hub dataset, to which `spec.revision` is pinned."""

    spec: DataSpec
    files: tuple[Path, ...]
    commit: str | None = None


def demo_path(kind: str, name: str) -> Path:
    """Return the folder of an embedded model (`kind` "models"), text ("data") or task ("tasks").

    Raises RecipeError with the available names.
    """
    root = _DEMO_ROOT / kind
    known = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if name in known:
        return root / name
    noun, code = {"models": ("model", "R430"), "data": ("text", "R460"), "tasks": ("task", "R469")}[kind]
    have = f"there is {ticked(DEMO + each for each in known)}" if known else "this installation embeds none"
    raise _error(code, f"there is no embedded {noun} `{DEMO}{name}`{did_you_mean(name, known)}", have)


def locate_model(spec: ModelSpec) -> tuple[Path | None, str | None]:
    """Return (folder, commit) of a model; in place of a folder, a GGUF file.

    A Hub model that is not downloaded yet has a commit and no folder; a local one has no commit.
    """
    source = spec.source
    if source.startswith(DEMO):
        return demo_path("models", source.removeprefix(DEMO)), None
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve(), None
    if gguf.is_gguf(path) and path.is_file():
        return path.resolve(), None
    if path.exists():
        raise _error("R430", f"the model `{source}` is a file; a checkpoint is a folder", f"name `{path.parent}`")
    if not is_hub_id(source) or gguf.is_gguf(path):
        raise _error(
            "R430",
            f"there is no {'file' if gguf.is_gguf(path) else 'folder'} `{source}`"
            + ("" if path.is_absolute() else f" in {Path.cwd()}"),
            "name a folder with config.json and safetensors files, a GGUF file, a Hub id such as `org/name`, or "
            "`demo:tiny-llama`",
        )
    folder = hub.cached_model(source, spec.revision)
    if folder is not None:
        return folder, folder.name
    return None, hub.model_commit(source, spec.revision)


def is_hub_id(source: str) -> bool:
    """Return whether a source, which is no local path, has the form of a Hub id."""
    return _HUB_ID.fullmatch(source) is not None and not source.endswith(DATA_SUFFIXES)


def locate_data(spec: DataSpec) -> DataLocation:
    """Return the files of a data entry.

    A Hub dataset is `org/name`, or `org/name:configuration`; it has no files here.
    """
    source = spec.source
    if source.startswith(DEMO):
        return DataLocation(spec, _split_files(spec, demo_path("data", source.removeprefix(DEMO))))
    path = Path(source).expanduser()
    if path.is_dir():
        return DataLocation(spec, _split_files(spec, path.resolve()))
    if path.is_file():
        if path.suffix not in DATA_SUFFIXES:
            raise _error(
                "R460",
                f"data `{spec.name}`: `{source}` has the suffix `{path.suffix}`; text is read from "
                f"{ticked(DATA_SUFFIXES)} files",
                "convert it to .jsonl: one JSON object a line, the text under `text`",
            )
        return DataLocation(spec, (path.resolve(),))
    id = source.partition(":")[0]
    if not is_hub_id(id):
        raise _error(
            "R460",
            f"data `{spec.name}`: there is no file or folder `{source}`"
            + ("" if path.is_absolute() else f" in {Path.cwd()}"),
            "name a .jsonl, .txt or .parquet file, a folder of them, a Hub dataset (`org/name`) or `demo:stdlib`",
        )
    if spec.split is None:
        raise _error("R466", f"data `{spec.name}`: the Hub dataset `{id}` needs a `split`", "add `split: train`")
    commit = hub.dataset_commit(id, spec.revision)
    return DataLocation(replace(spec, revision=commit), (), commit)


def _split_files(spec: DataSpec, folder: Path) -> tuple[Path, ...]:
    """Return the text files of a folder, by name.

    With `split`, those called split.*, split-* or in a folder of that name.
    """
    embedded = spec.source.startswith(DEMO)
    suffixes = DATA_SUFFIXES[:1] if embedded else DATA_SUFFIXES  # the folder of an embedded text also has its licence
    files = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
    if spec.split is None:
        if embedded:
            raise _error(
                "R466",
                f"data `{spec.name}`: `{spec.source}` needs a `split`",
                f"it has {ticked(path.stem for path in files)}",
            )
        if not files:
            raise _error(
                "R460",
                f"data `{spec.name}`: the folder `{spec.source}` holds no {ticked(DATA_SUFFIXES, 'or')} file",
                "name the folder that holds the text files",
            )
        return tuple(files)
    inner = folder / spec.split
    found = [path for path in files if path.stem == spec.split or path.name.startswith(f"{spec.split}-")]
    if not found and inner.is_dir():
        found = sorted(path for path in inner.iterdir() if path.suffix in DATA_SUFFIXES and path.is_file())
    if not found:
        known = [path.stem for path in files]
        raise _error(
            "R466",
            f"data `{spec.name}`: `{spec.source}` has no split `{spec.split}`{did_you_mean(spec.split, known)}",
            f"it has {ticked(known)}" if known else f"put a file `{spec.split}.jsonl` there",
        )
    return tuple(found)


def _error(code: str, message: str, help: str | None = None) -> RecipeError:
    return RecipeError([Diagnostic(code, message, help)])

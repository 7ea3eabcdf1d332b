"""Records of text and images: lines of .jsonl files with the paths of images in a field. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from runner.data.documents import json_rows, without_surrogates
from runner.errors import Diagnostic, MachineError, RecipeError
from runner.recipe.types import DataSpec
from runner.system import installed
from runner.wording import show, ticked

IMAGE = "image"  # the type of a part of a message that stands for the next image
_FORM = 'write {"image": "cat.jpg", "text": "A cat."}, or chat messages in the field that `field` names'
_PARTS = (
    'a part is {"type": "text", "text": "..."} or {"type": "image"}, the paths of images being in a field of their own'
)


@dataclass(frozen=True)
class ImageRecord:
    """A sample: a text, or messages whose contents are lists of parts, and its images in order of appearance.

    `where` is its place in the data, for complaints.
    """

    text: str
    messages: tuple[Mapping[str, Any], ...]
    images: tuple[Path, ...]
    where: str


def image_records(spec: DataSpec, files: Sequence[Path]) -> list[ImageRecord]:
    """Return the records of a located data entry that names `images`, at most `samples` of them.

    A record without that field has no image. RecipeError where the entry holds no such records (R662), and for images
    that are not there (R663) or that its messages do not account for (R664).
    """
    if spec.packing == "joined":
        raise _error("R662", f"data `{spec.name}` holds images, which `packing: joined` would run together",
                     "leave `packing` out")  # fmt: skip
    wrong = next((path for path in files if path.suffix != ".jsonl"), None)
    if wrong is not None or not files:
        found = spec.source if wrong is None else wrong
        message = f"data `{spec.name}` has `images`, which are read from local .jsonl files; it names `{found}`"
        raise _error("R662", message, _FORM)
    records = list(islice(_records(spec, files), spec.samples))
    if not any(record.images for record in records):
        raise _error("R662", f"data `{spec.name}`: no record has an image under `{spec.images}`", _FORM)
    return records


def packages() -> dict[str, str]:
    """Return the versions of the packages that decide what becomes of an image, of those that are installed."""
    found = {name: installed.version(name) for name in ("pillow", "torchvision")}
    return {name: version for name, version in found.items() if version is not None}


def check_images(records: Iterable[ImageRecord]) -> None:
    """Raise RecipeError (R663) for a file that is no image. MachineError where Pillow is not installed."""
    for record in records:
        for path in record.images:
            open_image(path, record.where).close()


def open_image(path: Path, where: str) -> Any:
    """Return an image of Pillow, not decoded yet, as `check_images` does."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        message = "reading images needs the package pillow, which is not installed"
        raise MachineError(message, "`pip install 'runner[images]'`") from None
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise unreadable(path, where, error) from None


def unreadable(path: Path, where: str, error: Exception) -> RecipeError:
    """Return the complaint about an image that cannot be read."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return _error(
        "R663", f"{where}: the image `{path}` cannot be read: {reason}", "replace it, or leave the record out"
    )


def _records(spec: DataSpec, files: Sequence[Path]) -> Iterator[ImageRecord]:
    for path in files:
        for row, where in json_rows(path):
            images = _images(row, str(spec.images), where, path.parent)
            value = without_surrogates(row.get(spec.field))
            if isinstance(value, str) and value.strip():
                yield ImageRecord(value, (), images, where)
            elif isinstance(value, list) and value:
                yield ImageRecord("", _messages(value, f"{where}: `{spec.field}`", len(images)), images, where)
            else:
                held = (
                    f"is {show(row[spec.field])}" if spec.field in row else f"is not there; it has {ticked(list(row))}"
                )
                raise _error("R462", f"{where}: `{spec.field}` must be text or messages; it {held}",
                             "set `field` of the data entry to the field that holds the text")  # fmt: skip


def _images(row: Mapping[str, Any], field: str, where: str, folder: Path) -> tuple[Path, ...]:
    """Return the paths of the images of a record. RecipeError (R663) where there is no such file."""
    value = row.get(field)
    names = [] if value is None else value if isinstance(value, list) else [value]
    found = []
    for name in names:
        if not isinstance(name, str) or not name:
            raise _error("R663", f"{where}: `{field}` must hold the path of an image; it holds {show(name)}", _FORM)
        path = folder / Path(name).expanduser()
        if not path.is_file():
            raise _error("R663", f"{where}: there is no image `{path}`",
                         "paths are relative to the folder of the .jsonl file")  # fmt: skip
        found.append(path)
    return tuple(found)


def _messages(value: list[Any], where: str, images: int) -> tuple[Mapping[str, Any], ...]:
    """Return messages with contents in parts; where none of them places the images, the first of the user begins

    with them.
    """
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            form = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
            raise _error("R468", f"{where}[{index}] must be a message; it is {show(message)}", form)
        messages.append({"role": role, "content": _parts(message.get("content"), f"{where}[{index}]")})
    placed = sum(part["type"] == IMAGE for message in messages for part in message["content"])
    if not placed and images:
        asks = next((message for message in messages if message["role"] == "user"), None)
        if asks is None:
            raise _error("R664", f"{where}: no message of the user is there to hold the images", _PARTS)
        asks["content"] = [*({"type": IMAGE} for _ in range(images)), *asks["content"]]
    elif placed != images:
        raise _error("R664", f"{where} places {placed} images; the record names {images}", _PARTS)
    return tuple(messages)


def _parts(content: Any, where: str) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[dict[str, str]] = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == IMAGE:
            parts.append({"type": IMAGE})
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise _error("R664", f"{where}: `content` holds {show(part)}, which is neither text nor an image", _PARTS)
    return parts


def as_messages(record: ImageRecord) -> tuple[Mapping[str, Any], ...]:
    """Return the messages of a record; a text that is none becomes the user's, after the images."""
    if record.messages:
        return record.messages
    parts = [*({"type": IMAGE} for _ in record.images), {"type": "text", "text": record.text}]
    return ({"role": "user", "content": parts},)


def _error(code: str, message: str, help: str) -> RecipeError:
    return RecipeError([Diagnostic(code, message, help)])

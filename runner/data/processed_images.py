"""Records of text and images as the forward of a model takes them, by the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from runner.data import special_tokens
from runner.data.chat_template import Conversation, Template
from runner.data.image_records import ImageRecord, as_messages, open_image, unreadable
from runner.errors import Diagnostic, MachineError, RecipeError

# What a processor raises on texts and images that do not fit it.
_MISFITS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)
_TOKENS = ("image_token_id", "image_token_index")  # of config.json: the token that stands for a part of an image
_PLACES = ("image_token", "boi_token")  # of a processor: what its texts write where an image is


class ImageSamples:
    """Records run through the processor of the model in `folder`, one at a time.

    ids      [records, length], each row a record's tokens, cut at `length`, then zeros
    lengths  how many tokens of each row are the record's
    """

    def __init__(self, folder: Path, records: Sequence[ImageRecord], length: int) -> None:
        """Process every record once. RecipeError, MachineError where one of them cannot be."""
        self._folder, self._records, self._length = folder, list(records), length
        self._processor: Any = None
        self.ids = torch.zeros(len(records), length, dtype=torch.long)
        self.lengths: list[int] = []
        for row, _ in enumerate(records):
            found = self.inputs(row)["input_ids"][0]
            self.ids[row, : len(found)] = found
            self.lengths.append(len(found))

    def __len__(self) -> int:
        return len(self._records)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_processor": None}  # another process loads its own

    def inputs(self, row: int) -> dict[str, torch.Tensor]:
        """Return what the model's forward takes for a record: input_ids [1, tokens], pixels, and what else it wants.

        RecipeError where an image cannot be read (R663), or text, images and `length` do not fit (R664).
        """
        record = self._records[row]
        if self._processor is None:
            self._processor = processor(self._folder)
        text = self._text(record)
        bos = getattr(self._processor.tokenizer, "bos_token", None)
        images = [_decoded(path, record.where) for path in record.images]
        try:
            found = self._processor(
                text=[text],
                images=images or None,
                return_tensors="pt",
                add_special_tokens=not (bos and text.startswith(bos)),  # as `apply_chat_template` of transformers
            )
        except _MISFITS as error:
            raise _error(record, f"the processor refuses its text and images: {error}") from None
        inputs = {name: value for name, value in found.items() if name != "attention_mask"}
        return self._cut(record, {n: v for n, v in inputs.items() if isinstance(v, torch.Tensor)})

    def _text(self, record: ImageRecord) -> str:
        """Return the text of a record with places for its images."""
        places = [getattr(self._processor, name, None) for name in _PLACES]
        if not record.messages and (not record.images or any(place and place in record.text for place in places)):
            return record.text
        template = Template(self._folder, getattr(self._processor, "chat_template", None))
        return template.render(Conversation(as_messages(record), record.where))

    def _cut(self, record: ImageRecord, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Cut what there is of each token at `length`. RecipeError where images have no tokens, or cut ones."""
        count = inputs["input_ids"].shape[1]
        config = special_tokens.read_object(self._folder / "config.json")
        token = next((config[name] for name in _TOKENS if isinstance(config.get(name), int)), None)
        if record.images and token is not None:
            places = (inputs["input_ids"][0] == token).nonzero()
            if not len(places):
                raise _error(record, f"its text has no token for its images ({token} in config.json)")
            end = int(places[-1]) + 1
            if end > self._length:
                message = f"its images end at token {end:,}, beyond `sequence_length` {self._length:,}"
                raise _error(record, message, "raise `sequence_length`, or make the images smaller")
        if count < 2:
            raise _error(record, "it has fewer than two tokens")
        return {n: v[:, : self._length] if v.shape[:2] == (1, count) else v for n, v in inputs.items()}


def processor(folder: Path) -> Any:
    """Return the processor in a checkpoint's folder, with Pillow where all its parts can do with that.

    So the same folder gives the same pixels wherever it runs. MachineError where a package is missing; RecipeError
    (R666) where there is no processor for images.
    """
    from transformers import AutoProcessor

    found = None
    for backend in ({"backend": "pil"}, {}):
        try:
            found = AutoProcessor.from_pretrained(folder, local_files_only=True, **backend)
            break
        except ImportError as error:
            missing = next((line.strip() for line in str(error).splitlines() if line.strip()), "a package is missing")
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            message = f"`{folder}` has no processor for images that transformers can load: {reason}"
            help = "copy the processor's files from the original model"
            raise RecipeError([Diagnostic("R666", message, help)]) from None
    if found is None:
        message = f"the processor in `{folder}` cannot be loaded: {missing}"
        raise MachineError(message, "`pip install 'runner[images]'`")
    if not hasattr(found, "image_processor"):
        message = f"the processor in `{folder}`, `{type(found).__name__}`, takes no images"
        raise RecipeError([Diagnostic("R666", message, "copy preprocessor_config.json from the original model")])
    return found


def _decoded(path: Path, where: str) -> Any:
    try:
        with open_image(path, where) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # a truncated file, broken chunks of a PNG
        raise unreadable(path, where, error) from None


def _error(record: ImageRecord, message: str, help: str = "mend the record, or leave it out") -> RecipeError:
    return RecipeError([Diagnostic("R664", f"{record.where}: {message}", help)])

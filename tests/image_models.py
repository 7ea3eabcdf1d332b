"""Tiny models that see images, with the processors that their checkpoints carry, and records of images for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from runner.recipe.types import DataSpec
from tests import towers

_WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{number}" for number in range(4, 120))]
_TEMPLATE = """{{ bos_token }}{% for m in messages %}{{ m.role }} {% for p in m.content %}\
{% if p.type == 'image' %}%s {% else %}{{ p.text }} {% endif %}{% endfor %}{% endfor %}"""


def save(folder: Path, name: str) -> Path:
    """Write a random model of the type `name`, "gemma3" or "qwen2_5_vl", with its processor."""
    towers.save(folder, name)
    _PROCESSORS[name](folder)
    return folder


def _tokenizer(media: list[str], template: str, **special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_WORDS, *media]
    inner = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=special, chat_template=template,
    )  # fmt: skip


def _gemma3(folder: Path) -> None:
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    special = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    template = _TEMPLATE.replace("%s", "<boi>")
    tokenizer = _tokenizer(["<image>", "<boi>", "<eoi>"], template, **special)
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4).save_pretrained(folder)


def _qwen2_5_vl(folder: Path) -> None:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor

    template = _TEMPLATE.replace("%s", "<begin> <image> <end>")
    tokenizer = _tokenizer(["<image>", "<begin>", "<end>", "<video>"], template, image_token="<image>",
                           vision_bos_token="<begin>", vision_eos_token="<end>", video_token="<video>")  # fmt: skip
    size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    sizes: dict[str, Any] = {"size": size, "patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    images, videos = Qwen2VLImageProcessorPil(**sizes), Qwen2VLVideoProcessor(**sizes)
    Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=template).save_pretrained(folder)


_PROCESSORS = {"gemma3": _gemma3, "qwen2_5_vl": _qwen2_5_vl}


def photos(folder: Path, count: int = 6) -> DataSpec:
    """Write `count` images and records of them: a caption, a chat, two images, and text without one, in turns."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    draw, rows = np.random.default_rng(0), []
    for number in range(count):
        size = (24 + 8 * (number % 3), 40)
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        text = " ".join(f"w{word}" for word in draw.integers(4, 119, 5 + 3 * number))
        chat = [{"role": "user", "content": text}, {"role": "assistant", "content": "w7 w8 w9"}]
        parts = [{"type": "text", "text": "w5"}, {"type": "image"}, {"type": "text", "text": text}, {"type": "image"}]
        rows.append([
            {"photo": f"{number}.png", "text": text},
            {"photo": f"{number}.png", "text": chat},
            {"photo": [f"{number}.png", "0.png"], "text": [{"role": "user", "content": parts}]},
            {"text": text},
        ][number % 4])  # fmt: skip
    (folder / "photos.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return DataSpec("photos", str(folder / "photos.jsonl"), None, 48, images="photo")

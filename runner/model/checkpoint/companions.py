"""The files that accompany the weights of a checkpoint: tokenizer, generation config, licence, compression.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

COMPRESSION = "compression.json"


def copy_companions(source: Path, target: Path) -> None:
    """Tokenizer, generation config, chat template, licence: every file beside the weights but those written anew.

    How a checkpoint was quantized is said only by those that hold its integers, so COMPRESSION is not copied.
    """
    written = {"config.json", "README.md", "quantize_config.json", COMPRESSION}
    for path in sorted(source.iterdir()):
        weights = path.suffix in {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"}
        own = path.name in written or path.name.endswith(".index.json")
        if path.is_file() and not weights and not own and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")

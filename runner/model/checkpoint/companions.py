"""The files that accompany the weights of a checkpoint: tokenizer, chat templates, generation config, licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import Diagnostic

COMPRESSION = "compression.json"
CHAT_TEMPLATES = "additional_chat_templates"  # the only subfolder of a model that transformers reads

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"})
_WRITTEN_ANEW = frozenset({"config.json", "README.md", "quantize_config.json", COMPRESSION})
_TOKENIZER = frozenset({
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "tekken.json", "chat_template.json",
})  # fmt: skip
_PROCESSING = frozenset({
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
})  # fmt: skip


def companion_files(folder: Path) -> list[str]:
    """Return the paths, in a checkpoint's folder, of files that are neither weights nor rewritten by each step.

    They are what `copy_companions` copies and what the digest of a model covers: two folders that differ in one of them
    are two models. Hidden files and folders other than CHAT_TEMPLATES do not count.
    """
    own = {path.name for path in folder.iterdir() if path.is_file() and _accompanies(path)}
    inner = folder / CHAT_TEMPLATES
    templates = {f"{CHAT_TEMPLATES}/{path.name}" for path in inner.glob("[!.]*") if path.is_file()}
    return sorted(own | templates)


def compression(folder: Path) -> Mapping[str, Any] | None:
    """Return compression.json of a checkpoint: the kind, params and calibration of the step that quantized it.

    None where it has none, or one that does not say all of that.
    """
    try:
        found = json.loads((folder / COMPRESSION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"kind", "params", "calibration"} <= set(found) else None


def compressed_by(folder: Path) -> str | None:
    """Return the kind of step that quantized a checkpoint, as its compression.json names it; None where it does not."""
    made = compression(folder)
    return None if made is None else str(made["kind"])


def _accompanies(path: Path) -> bool:
    if path.suffix in _WEIGHTS or path.name.startswith(".") or path.name.endswith(".index.json"):
        return False
    return path.name not in _WRITTEN_ANEW


def copy_companions(source: Path, target: Path) -> None:
    """Copy the companion files of a checkpoint into another folder.

    COMPRESSION, which describes a quantization, is not copied: only checkpoints with its integers have it.
    """
    for name in companion_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)


def broken_json(folder: Path) -> list[Diagnostic]:
    """Return complaints about JSON files of the tokenizer, processor or generation config that hold no JSON object."""
    found = (_broken(folder / name) for name in sorted(_TOKENIZER | _PROCESSING) if (folder / name).is_file())
    return [diagnostic for diagnostic in found if diagnostic is not None]


def _broken(path: Path) -> Diagnostic | None:
    again = f"download `{path.name}` again; if the model needs none, delete it"
    try:
        value = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        at = f"{path}:{error.lineno}:{error.colno}"
        return Diagnostic("R448", f"`{at}` is not JSON: {error.msg}", again)
    except UnicodeDecodeError as error:
        message = f"`{path}` is not text in UTF-8: byte {error.start} is not part of a character"
        return Diagnostic("R448", message, again)
    except OSError as error:
        return Diagnostic("R448", f"`{path}` cannot be read: {error.strerror or error}", None)
    except RecursionError:
        return Diagnostic("R448", f"`{path}` is nested too deeply to be read as JSON", again)
    if isinstance(value, dict):
        return None
    return Diagnostic("R448", f"`{path}` must hold a JSON object; it holds a {type(value).__name__}", again)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")

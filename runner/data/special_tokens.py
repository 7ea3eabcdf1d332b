"""The special tokens and chat template that a tokenizer's folder declares, by transformers' order of precedence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.model.checkpoint.companions import CHAT_TEMPLATES

CONFIG = "tokenizer_config.json"
LEGACY_MAP = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"


def declared(folder: Path) -> Mapping[str, Any]:
    """Return tokenizer_config.json, overridden by special_tokens_map.json where transformers reads that too.

    It does so where tokenizer_config.json has no `added_tokens_decoder`: before version 4.34 there was none
    (`PreTrainedTokenizerBase._from_pretrained`).
    """
    config = read_object(folder / CONFIG)
    if "added_tokens_decoder" in config:
        return config
    return {**config, **read_object(folder / LEGACY_MAP)}


def content(token: Any) -> str | None:
    """Return the text of a special token, which is stored as a string or as an object with `content`."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def ids(config: Mapping[str, Any], name: str) -> list[int]:
    """The ids that config.json or generation_config.json gives the special token `name`: "bos" or "eos"."""
    found = config.get(f"{name}_token_id")
    return [id for id in (found if isinstance(found, list) else [found]) if isinstance(id, int)]


def chat_template(folder: Path) -> str | None:
    """Return the text of the default chat template; None where the folder has none.

    A file `default.jinja` under CHAT_TEMPLATES takes precedence over TEMPLATE, and any template file over
    tokenizer_config.json; with named templates alone there is no default.
    """
    named = list((folder / CHAT_TEMPLATES).glob("*.jinja"))
    for path in (folder / CHAT_TEMPLATES / "default.jinja", folder / TEMPLATE):
        if path.is_file():
            return path.read_text("utf-8")
    if named:
        return None
    found = read_object(folder / CONFIG).get("chat_template")
    if isinstance(found, list):
        entries = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = entries.get("default")
    return found if isinstance(found, str) else None


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON file as a mapping; empty where it does not exist or holds anything else.

    `validate` refuses files that hold anything else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

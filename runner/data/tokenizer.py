"""A model's tokenizer, as the planner and the worker use it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.contracts.model_config import ModelConfig
from runner.data import long_text, special_tokens
from runner.data.chat_template import Template
from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import supported
from runner.wording import show


class Tokenizer:
    """A model's tokenizer: tokenizer.json by the `tokenizers` package, else what transformers finds in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        config = special_tokens.read_object(folder / "config.json")
        self.vocabulary = ModelConfig.of(config).vocabulary_size or None
        self._fast: Any = None
        self._slow: Any = None
        if is_fast(folder):
            import tokenizers

            try:
                self._fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # noqa: BLE001 - the package raises Exception itself, of no narrower type
                message = f"`{folder / 'tokenizer.json'}` cannot be read: {error}"
                raise RecipeError([Diagnostic("R448", message, "download the tokenizer again")]) from None
            self._fast.no_truncation()
            self._fast.no_padding()
            self.bos, self.eos = (self._special(folder, name, config) for name in ("bos", "eos"))
        else:
            from transformers import AutoTokenizer

            try:
                self._slow = AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=supported.runs_own_code(config)
                )
            except (OSError, ValueError, ImportError) as error:
                reason = str(error).strip().splitlines()[0]
                message = f"`{folder}` has no tokenizer.json, and transformers finds no other tokenizer there: {reason}"
                raise RecipeError([Diagnostic("R448", message, "download the tokenizer into that folder")]) from None
            self.bos, self.eos = self._slow.bos_token_id, self._slow.eos_token_id

    def encode(self, texts: list[str], *, special: bool) -> list[list[int]]:
        """Return the ids of each text; with `special`, including the special tokens that the tokenizer adds."""
        if self._fast is not None:
            return [found.ids for found in self._fast.encode_batch_fast(texts, add_special_tokens=special)]
        found = self._slow(texts, add_special_tokens=special, truncation=False, padding=False)
        return [list(ids) for ids in found["input_ids"]]

    def encode_long(self, parts: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of a text given in `parts`, without special tokens, in bounded memory.

        A tokenizer without offsets encodes the text at once.
        """
        if self._fast is None:
            yield self.encode(["".join(parts)], special=False)[0]
            return
        yield from long_text.tokens_of(parts, self._encode_with_offsets)

    def _encode_with_offsets(self, text: str) -> tuple[list[int], long_text.Offsets]:
        found = self._fast.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer adds (before, after) a text."""
        plain, framed = (self.encode(["a"], special=special)[0] for special in (False, True))
        size = len(plain)
        at = next((i for i in range(len(framed) - size + 1) if framed[i : i + size] == plain), len(framed))
        return framed[:at], framed[at + size :]

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        if self._fast is not None:
            return str(self._fast.decode(ids, skip_special_tokens=True))
        return str(self._slow.decode(ids, skip_special_tokens=True))

    @cached_property
    def template(self) -> Template:
        """The chat template; raises RecipeError where the tokenizer has none."""
        return Template(self._folder)

    def _special(self, folder: Path, name: str, config: Mapping[str, Any]) -> int | None:
        """Return the id of a special token, None where there is none.

        The tokenizer's files decide, also with null; otherwise generation_config.json, then config.json.
        """
        declared = special_tokens.declared(folder)
        key = f"{name}_token"
        if key in declared:
            if declared[key] is None:
                return None
            id = self._fast.token_to_id(special_tokens.content(declared[key]) or "")
            if id is None:
                message = f"the tokenizer in `{folder}` has no token for its `{key}`, {show(declared[key])}"
                help = "correct tokenizer_config.json or special_tokens_map.json, or download the tokenizer again"
                raise RecipeError([Diagnostic("R448", message, help)])
            return int(id)
        for source in (special_tokens.read_object(folder / "generation_config.json"), config):
            if ids := special_tokens.ids(source, name):
                return ids[0]
        return None


# Files from which tokenizers of transformers are read. A folder with none of them has no tokenizer.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "*.spm",
    "spiece.model", "sentencepiece*.model", "*.tiktoken", "tekken.json",
)  # fmt: skip


def no_tokenizer(folder: Path) -> Diagnostic | None:
    """Return the complaint about a folder that holds no tokenizer of any form; None where there may be one."""
    if any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        return None
    message = f"`{folder}` holds no tokenizer, which turns texts into tokens: there is no tokenizer.json"
    return Diagnostic("R448", message, "download the tokenizer of the model into that folder")


def is_fast(folder: Path) -> bool:
    """Return whether a folder's tokenizer can be used without transformers."""
    return (folder / "tokenizer.json").is_file()

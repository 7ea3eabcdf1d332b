"""Text to token ids, tokens to text as they come: the tokenizer beside a checkpoint or an engine. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from runner.data import chat_template, special_tokens
from runner.data.tokenizer import Tokenizer
from runner.errors import RecipeError, StepFailed
from runner.runtime.protocol import Ids

_BROKEN = "\ufffd"  # what a decoder writes for the first bytes of a character whose others are still to come


class Text:
    """The tokenizer in a folder. StepFailed where there is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._tokenizer = Tokenizer(folder)
        except RecipeError as error:
            raise StepFailed(error.message, error.diagnostics[0].help) from error

    def ids(self, prompt: str) -> Ids:
        """Token ids [1, n] of a prompt, with the special tokens that the tokenizer adds by itself."""
        return self._encoded(prompt, special=True)

    def chat_ids(self, prompt: str) -> Ids:
        """Token ids [1, n] of a chat in which the user says `prompt` and the assistant is about to answer."""
        if special_tokens.chat_template(self._folder) is None:
            message = f"the tokenizer in `{self._folder}` has no chat template"
            raise StepFailed(message, "leave `--chat` out: the prompt is then the beginning of a text")
        said = chat_template.Conversation(({"role": "user", "content": prompt},), "the prompt")
        try:
            return self._encoded(self._tokenizer.template.render(said, answer=True), special=False)
        except RecipeError as error:
            raise StepFailed(error.message, error.diagnostics[0].help) from error

    def _encoded(self, text: str, *, special: bool) -> Ids:
        ids = self._tokenizer.encode([text], special=special)[0]
        if not ids and self._tokenizer.bos is not None:
            ids = [self._tokenizer.bos]
        return np.array([ids], np.int64)

    def ends(self) -> set[int]:
        """The tokens that end a text: of generation_config.json, config.json and the tokenizer."""
        found = set() if self._tokenizer.eos is None else {self._tokenizer.eos}
        for name in ("generation_config.json", "config.json"):
            try:
                value = json.loads((self._folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            except (OSError, ValueError, AttributeError):
                continue  # one of several places, none of which must be there
            found |= {id for id in (value if isinstance(value, list) else [value]) if isinstance(id, int)}
        return found

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of `tokens`, a piece as soon as it is certain: whole characters, spaces as in the whole text.

        A token is decoded together with those of the piece before it, because many decoders drop a leading space.
        """
        held: list[int] = []
        before = 0  # how many of `held` were told already
        for token in tokens:
            held.append(token)
            told, now = self._tokenizer.decode(held[:before]), self._tokenizer.decode(held)
            if len(now) > len(told) and not now.endswith(_BROKEN):
                yield now[len(told) :]
                held = held[before:]
                before = len(held)
        told, now = self._tokenizer.decode(held[:before]), self._tokenizer.decode(held)
        if len(now) > len(told):
            yield now[len(told) :]

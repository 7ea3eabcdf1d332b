"""Convert text to token ids, and streamed tokens to text, by the tokenizer in a model's folder. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from runner.data import chat_template, special_tokens
from runner.data.tokenizer import Tokenizer
from runner.errors import RecipeError, StepFailed
from runner.runtime.protocol import Ids

_BROKEN = "\ufffd"  # what a decoder writes for an incomplete character


class Text:
    """The tokenizer in a folder. StepFailed where there is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._tokenizer = Tokenizer(folder)
        except RecipeError as error:
            raise StepFailed(error.message, error.diagnostics[0].help) from error

    def ids(self, prompt: str) -> Ids:
        """Return the token ids [1, n] of a prompt, with the special tokens that the tokenizer adds by itself."""
        return self._encoded(prompt, special=True)

    def chat_ids(self, prompt: str) -> Ids:
        """Return the token ids [1, n] of a chat with the user message `prompt`, up to the assistant's answer."""
        if special_tokens.chat_template(self._folder) is None:
            message = f"the tokenizer in `{self._folder}` has no chat template"
            raise StepFailed(message, "leave `--chat` out: the prompt is then the beginning of a text")
        conversation = chat_template.Conversation(({"role": "user", "content": prompt},), "the prompt")
        try:
            return self._encoded(self._tokenizer.template.render(conversation, answer=True), special=False)
        except RecipeError as error:
            raise StepFailed(error.message, error.diagnostics[0].help) from error

    def _encoded(self, text: str, *, special: bool) -> Ids:
        ids = self._tokenizer.encode([text], special=special)[0]
        if not ids and self._tokenizer.bos is not None:
            ids = [self._tokenizer.bos]
        return np.array([ids], np.int64)

    def ends(self) -> set[int]:
        """Return the tokens that end a text, from generation_config.json, config.json and the tokenizer."""
        found = set() if self._tokenizer.eos is None else {self._tokenizer.eos}
        for name in ("generation_config.json", "config.json"):
            found |= set(special_tokens.ids(special_tokens.read_object(self._folder / name), "eos"))
        return found

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield the text of `tokens` in pieces of complete characters, with the spaces of the full text.

        A token is decoded together with those of the previous piece, because many decoders drop a leading space.
        """
        recent: list[int] = []
        before = 0  # how many of `recent` belong to the previous piece
        for token in tokens:
            recent.append(token)
            previous, now = self._tokenizer.decode(recent[:before]), self._tokenizer.decode(recent)
            if len(now) > len(previous) and not now.endswith(_BROKEN):
                yield now[len(previous) :]
                recent = recent[before:]
                before = len(recent)
        previous, now = self._tokenizer.decode(recent[:before]), self._tokenizer.decode(recent)
        if len(now) > len(previous):
            yield now[len(previous) :]

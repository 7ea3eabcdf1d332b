"""Text → windows of token ids: the one rule, shared by the planner (which counts) and the worker. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.data import special_tokens
from runner.data.chat_template import Template
from runner.data.documents import Document, documents_of
from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import supported
from runner.recipe.types import DataSpec

Ids = NDArray[np.int64]

_BATCH_CHARACTERS = 1 << 18  # encoded at once: enough for every core, little enough to stop early
_JOINT = "\n\n"


class _Text(NamedTuple):
    """A document's text; `framed`: a chat template has written the special tokens into it already."""

    text: str
    framed: bool


def windows(spec: DataSpec, files: Sequence[Path], tokenizer_folder: Path) -> Ids:
    """Token ids [n, sequence_length] of a located data entry, n = samples where the text is long enough.

    packing "documents": bos + tokens + eos of each document, one stream (bos and eos where the model has them);
    "joined": the documents joined by a blank line and tokenized once, with the tokenizer's own special tokens. The
    stream is cut from its start, the tail dropped. Chat messages are written out by the tokenizer's chat template and
    nothing is put around them. RecipeError where there is not even one window.
    """
    length = spec.sequence_length
    ids = tokens(spec, documents_of(spec, files), Tokenizer(tokenizer_folder))
    count = len(ids) // length
    if count == 0:
        raise RecipeError([too_short(spec, len(ids))])
    return ids[: count * length].reshape(count, length)


def tokens(spec: DataSpec, documents: Iterable[Document], tokenizer: Tokenizer) -> Ids:
    """The stream of token ids [tokens] that the windows are cut from; no more than `samples` windows of it."""
    limit = None if spec.samples is None else spec.samples * spec.sequence_length
    joined = spec.packing == "joined"
    texts = _texts(spec, documents, tokenizer)
    chunks = _joined((text for text, _ in texts), tokenizer, limit) if joined else _packed(texts, tokenizer, limit)
    ids = np.concatenate([np.zeros(0, np.int64), *chunks])[:limit]
    highest = int(ids.max()) if len(ids) else 0
    if tokenizer.vocabulary is not None and highest >= tokenizer.vocabulary:
        message = (
            f"the tokenizer gives the token {highest}; config.json has `vocab_size` = {tokenizer.vocabulary}, "
            "so the two do not belong together"
        )
        raise RecipeError([Diagnostic("R448", message, "download model and tokenizer together")])
    return ids


def too_short(spec: DataSpec, found: int) -> Diagnostic:
    """The complaint about a text of `found` tokens."""
    samples, length = spec.samples or 1, spec.sequence_length
    have = found // length
    whole = f"{have} window{'' if have == 1 else 's'}"
    remedy = f"lower `samples` to {have}" if have else f"lower `sequence_length` to {found}" if found > 1 else ""
    return Diagnostic(
        "R464",
        f"data `{spec.name}` asks for {samples} window{'' if samples == 1 else 's'} of {length} tokens = "
        f"{samples * length:,}; the text has {found:,} ({whole})",
        f"{remedy}, or name a longer text" if remedy else "name a longer text",
    )


def _texts(spec: DataSpec, documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[_Text]:
    for document in documents:
        if isinstance(document, str):
            yield _Text(document, False)
            continue
        if spec.packing == "joined":
            message = f"data `{spec.name}` holds chat messages, which `packing: joined` would run together"
            raise RecipeError([Diagnostic("R468", message, "leave `packing` out")])
        yield _Text(tokenizer.template.render(document), True)


def _packed(texts: Iterable[_Text], tokenizer: Tokenizer, limit: int | None) -> Iterator[Ids]:
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    eos = [] if tokenizer.eos is None else [tokenizer.eos]
    total = 0
    for batch in _batches(texts):
        encoded = tokenizer.encode([text for text, _ in batch], special=False)
        for ids, (_, framed) in zip(encoded, batch, strict=True):
            whole = ids if framed else [*bos, *ids, *eos]
            total += len(whole)
            yield np.array(whole, np.int64)
            if limit is not None and total >= limit:
                return


def _joined(documents: Iterable[str], tokenizer: Tokenizer, limit: int | None) -> Iterator[Ids]:
    """Where only the first tokens are wanted, a prefix of the documents is tokenized: as many as surely hold them.

    The prefix is at least a quarter longer than what is kept, so that its end moves no token that is.
    """
    source = iter(documents)
    if limit is None:
        yield np.array(tokenizer.encode([_JOINT.join(source)], special=True)[0], np.int64)
        return
    text, wanted = "", 8 * limit
    while True:
        more = _characters(source, wanted - len(text))
        text = _JOINT.join([text, *more] if text else more)
        ids = tokenizer.encode([text], special=True)[0]
        if not more or 4 * len(ids) >= 5 * limit:
            yield np.array(ids, np.int64)
            return
        wanted = 2 * max(wanted, len(text))


def _characters(source: Iterator[str], count: int) -> list[str]:
    """Documents until they hold `count` characters; at least one if there is one."""
    taken = list(islice(source, 1))
    held = sum(map(len, taken))
    while held < count and (more := list(islice(source, 1))):
        taken += more
        held += len(more[0])
    return taken


def _batches(texts: Iterable[_Text]) -> Iterator[list[_Text]]:
    batch, held = [], 0
    for text in texts:
        batch.append(text)
        held += len(text.text)
        if held >= _BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


class Tokenizer:
    """A model's tokenizer: tokenizer.json by the `tokenizers` package, else what transformers finds in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        config = special_tokens.read_object(folder / "config.json")
        vocabulary = config.get("vocab_size")
        self.vocabulary = vocabulary if isinstance(vocabulary, int) else None
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
        """The ids of each text; with `special`, those that the tokenizer adds by itself."""
        if self._fast is not None:
            return [found.ids for found in self._fast.encode_batch_fast(texts, add_special_tokens=special)]
        found = self._slow(texts, add_special_tokens=special, truncation=False, padding=False)
        return [list(ids) for ids in found["input_ids"]]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        if self._fast is not None:
            return str(self._fast.decode(ids, skip_special_tokens=True))
        return str(self._slow.decode(ids, skip_special_tokens=True))

    @cached_property
    def template(self) -> Template:
        """The chat template; RecipeError where the tokenizer has none."""
        return Template(self._folder)

    def _special(self, folder: Path, name: str, config: Mapping[str, Any]) -> int | None:
        """The tokenizer's files say which token it is, or with null that there is none; the configs come after them."""
        declared = special_tokens.declared(folder)
        key = f"{name}_token"
        if key in declared:
            if declared[key] is None:
                return None
            id = self._fast.token_to_id(special_tokens.content(declared[key]) or "")
            if id is not None:
                return int(id)
        for source in (special_tokens.read_object(folder / "generation_config.json"), config):
            value = source.get(f"{name}_token_id")
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int):
                return value
        return None


# What some tokenizer of transformers is read from. A folder with none of them has none.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "*.spm",
    "spiece.model", "sentencepiece*.model", "*.tiktoken", "tekken.json",
)  # fmt: skip


def no_tokenizer(folder: Path) -> Diagnostic | None:
    """The complaint about a folder that holds no tokenizer of any form; None where there may be one."""
    if any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        return None
    message = f"`{folder}` holds no tokenizer, which turns texts into tokens: there is no tokenizer.json"
    return Diagnostic("R448", message, "download the tokenizer of the model into that folder")


def is_fast(folder: Path) -> bool:
    """Whether a folder's tokenizer can be used without transformers."""
    return (folder / "tokenizer.json").is_file()

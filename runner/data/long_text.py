"""Tokenizes a long text piece by piece, so that memory does not grow with its length. Imports no torch.

A tokenizer takes about 150 bytes of memory a character: a text of 20 MB at once takes 3 GB. Pieces overlap;
the tokens of two pieces are joined at a place in the overlap where both begin a token, so that no token depends on
where a piece ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

PIECE = 1 << 18  # characters tokenized at once
OVERLAP = 1 << 12  # characters at the end of a piece that are tokenized again; longer than what a token depends on

Offsets = Sequence[tuple[int, int]]
Encode = Callable[[str], tuple[list[int], Offsets]]


def pieces(parts: Iterable[str], piece: int = PIECE) -> Iterator[str]:
    """Yield the same text in parts of `piece` characters, the last one shorter."""
    held = ""
    for part in parts:
        for at in range(0, len(part), piece):
            held += part[at : at + piece]
            if len(held) > piece:
                yield held[:piece]
                held = held[piece:]
    if held:
        yield held


def tokens_of(parts: Iterable[str], encode: Encode, piece: int = PIECE, overlap: int = OVERLAP) -> Iterator[list[int]]:
    """Yield the token ids of a text given in `parts`; a text of one piece is encoded at once.

    `encode` returns ids without special tokens, and for each the characters [begin, end) that it stands for.
    """
    ids: list[int] = []
    offsets: Offsets = []
    text, begin = "", 0  # the encoded text, and the place in it where the next piece begins
    for part in pieces(parts, piece):
        text = text[begin:] + part
        new_ids, new_offsets = encode(text)
        if ids:
            left, right = _seam(offsets, begin, new_offsets, overlap)
            yield ids[:left]
            new_ids, new_offsets = new_ids[right:], new_offsets[right:]
        ids, offsets = new_ids, new_offsets
        begin = _restart(offsets, len(text) - 2 * overlap)
    yield ids


def _restart(offsets: Offsets, near: int) -> int:
    """Return the end of the last token that ends at or before `near`, where the next piece begins."""
    low, high = 0, len(offsets)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if offsets[middle][1] <= near else (low, middle)
    return offsets[low - 1][1] if low else 0


def _seam(left: Offsets, begin: int, right: Offsets, overlap: int) -> tuple[int, int]:
    """Return (tokens of the left piece to keep, tokens of the right piece to drop), where both begin a token.

    The right piece starts at `begin` of the left one. The first half of an overlap belongs to the left piece, since the
    beginning of a text may be tokenized differently from its middle; where no tokens meet, the right piece is used from
    its start.
    """
    ends = {end: index for index, (_, end) in enumerate(left) if end >= begin}
    least = begin + overlap // 2
    for index in range(1, len(right)):
        end = right[index - 1][1] + begin
        if end >= least and end in ends and right[index][0] + begin >= end:
            after = ends[end] + 1
            if after < len(left) and left[after][0] >= end:
                return after, index
    return ends.get(begin, -1) + 1, 0

"""Makes continuation.jsonl out of the embedded evaluation text: which of four lines follows a context?

python runner/demo/tasks/continuation/make.py    writes it anew, the same bytes every time
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
TEXT = FOLDER.parents[1] / "data" / "stdlib" / "evaluation.jsonl"
ITEMS = 100
CONTEXT = (100, 200)  # characters
CONTINUATION = (30, 80)
CHOICES = 4

Place = tuple[str, str]  # the lines before, and what follows them: "\n" and a line or more


def items(documents: Sequence[str]) -> Iterator[dict[str, object]]:
    """ITEMS contexts, spread evenly over all places; `gold` is the place of the true continuation in `choices`."""
    random_ = random.Random(0)
    places = [place for document in documents for place in cuts(document)]
    for index in range(ITEMS):
        context, truth = places[index * len(places) // ITEMS]
        others: list[str] = []
        while len(others) < CHOICES - 1:
            candidate = random_.choice(places)[1]
            if candidate not in (truth, *others):
                others.append(candidate)
        gold = random_.randrange(CHOICES)
        yield {"id": index, "context": context, "choices": [*others[:gold], truth, *others[gold:]], "gold": gold}


def cuts(document: str) -> Iterator[Place]:
    """Every place between two lines of a document with enough text before and after it."""
    lines = document.split("\n")
    for index in range(1, len(lines)):
        start = index
        while start > 0 and len("\n".join(lines[start:index])) < CONTEXT[0]:
            start -= 1
        context = "\n".join(lines[start:index])
        stop = index
        while stop < len(lines) and len("\n".join(lines[index:stop]).strip()) < CONTINUATION[0]:
            stop += 1
        following = "\n".join(lines[index:stop])
        sizes = len(context), len(following)
        within = all(low <= size <= high for size, (low, high) in zip(sizes, (CONTEXT, CONTINUATION), strict=True))
        if within and lines[index - 1].strip() and lines[index].strip():
            yield context, "\n" + following


def text() -> str:
    """The whole of continuation.jsonl."""
    documents = [json.loads(line)["text"] for line in TEXT.read_text("utf-8").splitlines()]
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items(documents))


if __name__ == "__main__":
    (FOLDER / "continuation.jsonl").write_text(text(), encoding="utf-8")

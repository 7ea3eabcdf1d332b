"""Compare the vocabularies of two tokenizers. Imported by the planner: no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

_SHOWN = 3  # differing tokens that are named


def tokens(folder: Path) -> dict[str, int] | None:
    """Return token → id of the tokenizer in a folder, or None where it has no tokenizer.json that lists them."""
    try:
        found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    model = found.get("model") if isinstance(found, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # Unigram: [[token, score], …]
        vocabulary = {str(entry[0]): number for number, entry in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict):
        return None
    return {**vocabulary, **{str(added["content"]): int(added["id"]) for added in found.get("added_tokens") or ()}}


def mismatch(teacher: Mapping[str, int], student: Mapping[str, int]) -> str | None:
    """Describe how two vocabularies differ, with the first few tokens; None where they are equal."""
    differing = [token for token in {**teacher, **student} if teacher.get(token) != student.get(token)]
    if not differing:
        return None
    differing.sort(key=lambda token: (min(teacher.get(token, 1 << 62), student.get(token, 1 << 62)), token))
    shown = [_described(token, teacher, student) for token in differing[:_SHOWN]]
    more = len(differing) - len(shown)
    if more:
        shown.append(f"{more:,} more tokens differ" if more > 1 else "1 more token differs")
    return ", ".join(shown)


def _described(token: str, teacher: Mapping[str, int], student: Mapping[str, int]) -> str:
    if token not in student:
        return f"`{token}` ({teacher[token]}) is only in the teacher's"
    if token not in teacher:
        return f"`{token}` ({student[token]}) is only in the student's"
    return f"`{token}` is {teacher[token]} to the teacher and {student[token]} to the student"

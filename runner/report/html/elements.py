"""The HTML elements of the page's sections: tables, states, folded parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runner.progress import units
from runner.report.html.markup import Markup, Part, join, prose, tag

ICONS = {"good": "✓", "bad": "✗", "warn": "!", "idle": "·"}


def section(title: str, id: str, *parts: Part) -> Markup:
    """Make a section under a heading, which links may name by `id`."""
    return tag("section", tag("h2", title, id=id), parts, aria_labelledby=id)


def folded(summary: str, content: Markup) -> Markup:
    """Make a part that shows only its summary until it is opened."""
    return tag("details", tag("summary", summary), content)


def data_table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Part]], numbers: Iterable[int] = ()
) -> Markup:
    """Make a table; the columns `numbers` are aligned right.

    On a phone each row becomes a block; the roles keep it a table for screen readers.
    """
    right = set(numbers)
    lines = [
        tag(
            "tr",
            [
                tag(
                    "td",
                    tag("div", cell) if cell else None,
                    role="cell",
                    data_label=head[i],
                    class_="number" if i in right else None,
                )
                for i, cell in enumerate(row)
            ],
            role="row",
        )
        for row in rows
    ]
    titles = [
        tag("th", name, scope="col", role="columnheader", class_="number" if i in right else None)
        for i, name in enumerate(head)
    ]
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", titles, role="row"), role="rowgroup"),
        tag("tbody", lines, role="rowgroup"),
        role="table",
    )


def state_mark(word: str, level: str) -> Markup:
    """Make a state with the icon of its level: "good", "bad", "warn" or "idle"."""
    return tag("span", tag("span", ICONS[level], aria_hidden="true"), " ", word, class_=f"state {level}")


def sentence(text: str) -> Markup:
    """Make markup of text in which `words` between backticks are code."""
    parts = text.split("`")
    return join(
        [
            tag("code", part) if number % 2 and number < len(parts) - 1 else prose(part)
            for number, part in enumerate(parts)
        ]
    )


def hash_code(text: str) -> Markup:
    """Make a hash that may break over lines."""
    return tag("code", text, class_="hash")


def number_text(value: object) -> str:
    """Format a number; "" for None."""
    return units.number(value) if value is not None else ""

"""The embedded task is what its script makes."""

from __future__ import annotations

import json

from runner.demo.tasks.continuation import make


def test_making_it_again_gives_the_same_file() -> None:
    assert (make.FOLDER / "continuation.jsonl").read_text("utf-8") == make.text()


def test_every_item_has_one_true_continuation() -> None:
    documents = [json.loads(line)["text"] for line in make.TEXT.read_text("utf-8").splitlines()]
    items = [json.loads(line) for line in make.text().splitlines()]
    assert len(items) == make.ITEMS
    for item in items:
        assert make.CONTEXT[0] <= len(item["context"]) <= make.CONTEXT[1]
        assert len(set(item["choices"])) == make.CHOICES
        true = item["context"] + item["choices"][item["gold"]]
        assert any(true in document for document in documents)
    assert {item["gold"] for item in items} == set(range(make.CHOICES))

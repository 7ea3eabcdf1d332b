"""docs/models.md: two commands fill one table, and neither loses what the other wrote."""

from __future__ import annotations

from benchmarks.model_sweep import swept
from benchmarks.models_page import PAGE, Row, known_rows, known_vllm, page
from tests.sweep import PERPLEXITY, RIGHT, STEPS, Outcome

ALL = dict.fromkeys((PERPLEXITY, *STEPS), RIGHT)


def test_all_rows_of_the_page_are_kept() -> None:
    rows = known_rows(PAGE.read_text("utf-8"))
    assert len(rows) > 200
    assert known_rows(page(rows, "vLLM 1")) == rows


def test_a_sweep_keeps_what_vllm_made_of_a_type() -> None:
    tried = Row(("yes", "–", "–", "yes"), "a | b", "–", "dense too: x | y")
    text = page({"llama": tried}, "vLLM 0.32.0")
    line = "| `llama` | yes | – | – | yes | – | a \\| b; vLLM: dense too: x \\| y |\n"
    assert line in text
    assert "Of 1 types that were tried in vLLM 0 are right." in text
    assert known_vllm(text) == "vLLM 0.32.0"
    assert known_rows(text) == {"llama": tried}
    assert swept(tried, Outcome(ALL)) == Row(("yes",) * 4, "", "–", "dense too: x | y")


def test_wrong_types_are_named_above_the_table() -> None:
    text = page({"llama": Row(("yes",) * 4, "", "wrong", "w4a16: differs"), "opt": Row(("wrong",) * 4, "no")}, "vLLM 1")
    assert "pruned right. Wrong are `opt`." in text
    assert "0 are right. Wrong are `llama`." in text


def test_lines_without_the_column_of_vllm_are_read() -> None:
    assert known_rows("| `llama` | yes | – | – | yes | why |\n") == {"llama": Row(("yes", "–", "–", "yes"), "why")}

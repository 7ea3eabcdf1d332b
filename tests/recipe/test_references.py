from __future__ import annotations

import pytest

from runner.recipe.references import Reference, from_rule, parse
from tests.recipe.cases import complaint_of, recipe


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("baseline", (None, "baseline")),
        ("accepted", ("accepted", None)),
        ("accepted/quality", ("accepted", "quality")),
        ("job:a-3f9a", ("a-3f9a", None)),
        ("job:a-3f9a/quality", ("a-3f9a", "quality")),
    ],
)
def test_parse(text: str, reference: tuple[str | None, str | None]) -> None:
    assert parse(text) == Reference(text, *reference)
    assert (
        from_rule({"max_ratio_to": text, "value": 1.0})
        == from_rule({"min_ratio_to": text, "value": 1.0})
        == parse(text)
    )


def test_absolute_rules_refer_to_nothing() -> None:
    assert from_rule({"max": 20}) is None


GATE = "- evaluate.perplexity: {data: text, gates: {perplexity: {max_ratio_to: REF, value: 1.1}}}"


@pytest.mark.parametrize("text", ["accepted", "accepted/quality", "job:a-3f9a", "job:a-3f9a/quality"])
def test_other_jobs_are_no_steps_of_the_recipe(text: str) -> None:
    from runner.recipe.load import loads

    loads(recipe(GATE.replace("REF", f'"{text}"')), "r.yaml")


def test_a_reference_of_another_form() -> None:
    assert complaint_of(recipe(GATE.replace("REF", '"job:"'))) == (
        "r.yaml:6:74: error[R206]: `gates.perplexity.max_ratio_to` must be the id of a step, `accepted`, "
        '`accepted/STEP`, `job:NAME` or `job:NAME/STEP`; got "job:"\n'
        '    6 |   - evaluate.perplexity: {data: text, gates: {perplexity: {max_ratio_to: "job:", value: 1.1}}}\n'
        "      |                                                                          ^^^^^^\n"
        "help: `runner steps evaluate.perplexity` lists every parameter"
    )


def test_the_id_accepted_is_reserved() -> None:
    assert complaint_of(recipe("- quantize.rtn: {}", "  id: accepted")) == (
        "r.yaml:7:9: error[R302]: the id `accepted` is reserved: it names the last accepted job, in gates\n"
        "    7 |     id: accepted\n"
        "      |         ^^^^^^^^\n"
        "help: give the step another id"
    )

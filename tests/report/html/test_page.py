from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from runner.report import job_report
from runner.report.html import page
from runner.report.job_report import JobReport
from tests.report.jobs import gate, made
from tests.report.pages import Element, parsed

HOSTILE = "<script>alert(1)</script>\"'><img src=https://evil.example/x onerror=alert(2)>&amp;</title></style>\x00"

MEANT = """\
The weights went from 4.00 kB to 1.00 kB, 4.0 times smaller; gptq saved the most, 3.00 kB.

Perplexity went from 10 to 11 (+10 %); lower is better. The dashed line is the gate's limit, 10.5. The scale does not
begin at zero.

Layer 3 loses most: 0.8 % of the energy of its modules' outputs, 1.6 times the median layer. A column is the mean over a
layer's modules, the stroke above it the worst of them. The pale columns are the error before this step.

mlp.down_proj is the most sensitive, with a mean error of 0.75 %; self_attn.q_proj the least, with 0.25 %. The worst
single place is mlp.down_proj of layer 3, 1.2 %. The stronger the colour, the larger the error: where it is strong, more
bits or less sparsity buy the most.

The training loss went from 2.98 to 2.2 (−26 %) over 40 optimizer steps. The loss on the evaluation text (circles) was
lowest at step 40: 2.5. The weights of step 40 were kept. The learning rate was at most 0.0001."""


@pytest.fixture
def report(tmp_path: Path) -> JobReport:
    plan = made(tmp_path, "gate-missed", events=[gate(4, "quality", 11.0, 10.5), gate(4, "quality", 2.4, 3.0, "loss")])
    return job_report.read(tmp_path, plan.job_id)


def shown(report: JobReport) -> Element:
    return parsed(page.html(report))


def test_the_verdict_comes_first(report: JobReport) -> None:
    body = shown(report)
    (title,) = body.all("head")[0].all("title")
    assert title.text == "demo: gate missed"
    verdict = body.all("header")[0].all("div")[0]
    assert verdict.attributes["class"] == "verdict bad"
    assert verdict.text == "✗Gate missedStep quality: perplexity is 11, 0.5 above its limit 10.5. Everything is kept."


@pytest.mark.parametrize(("done", "note"), [(5, "to compute every step"), (2, "to compute 2 of 5 steps")])
def test_what_the_time_was_for(tmp_path: Path, done: int, note: str) -> None:
    plan = made(tmp_path, "done" if done == 5 else "interrupted", done=done)
    (figures,) = shown(job_report.read(tmp_path, plan.job_id)).all("dl")
    told = {box.all("dt")[0].text: [part.text for part in box.all("dd")[0].children] for box in figures.all("div")}  # type: ignore[union-attr]
    assert told["time"] == [f"{done * 2}.0\u00a0s", note]


def test_sections_in_order(report: JobReport) -> None:
    assert [heading.text for heading in shown(report).all("h2")] == [
        "Gates", "Chain of steps", "Size and quality along the chain", "Layer by layer", "Training", "Load the result",
        "Recipe", "Environment", "Digests",
    ]  # fmt: skip


def test_the_chain_says_time_memory_forecast_size_and_quality(report: JobReport) -> None:
    table = shown(report).all("table")[1]
    rows = [[cell.text for cell in row.all("td")] for row in table.all("tr")[1:]]
    assert rows[0] == [
        "baselineevaluate.perplexity", "✓ done", "2.0 sforecast ~5 s", "500 MBforecast 600 MB", "", "perplexity 10"
    ]  # fmt: skip
    assert rows[3] == ["gptqquantize.gptq", "✓ done", "2.0 s", "500 MB", "4.00 kB → 1.00 kB", "perplexity 11"]


def test_every_plot_is_drawn_for_both_widths_and_says_what_it_means(report: JobReport) -> None:
    figures = shown(report).all("figure")
    assert [figure.attributes["data-plot"] for figure in figures] == [
        "sizes",
        "quality",
        "errors",
        "sensitivity",
        "loss",
    ]
    for figure in figures:
        wide, narrow = figure.all("svg")
        assert (wide.attributes["class"], narrow.attributes["class"]) == ("plot wide", "plot narrow")
        (sentence,) = figure.all("figcaption")
        assert sentence.text.endswith(".")
        for svg in (wide, narrow):
            assert svg.attributes["role"] == "img"
            assert svg.attributes["aria-label"]
            assert svg.all("rect") + svg.all("circle") + svg.all("polyline")


def test_what_the_plots_mean(report: JobReport) -> None:
    found = [figure.all("figcaption")[0].text.replace("\u00a0", " ") for figure in shown(report).all("figure")]
    assert found == [" ".join(sentence.split()) for sentence in MEANT.split("\n\n")]


def test_it_loads_and_runs_nothing(report: JobReport) -> None:
    body = shown(report)
    for name in ("script", "link", "img", "iframe", "object", "embed", "image", "use", "a", "form", "base"):
        assert body.all(name) == []
    every = [element for root in body.children if isinstance(root, Element) for element in (root, *_below(root))]
    for element in every:
        assert not {"src", "href", "style", "srcset", "action"} & set(element.attributes)
        assert not [name for name in element.attributes if name.startswith("on")]
    (style,) = body.all("style")
    assert not re.search(r"url\(|@import|https?:|expression", style.text)
    policy = [m.attributes["content"] for m in body.all("meta") if m.attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_light_dark_phone_and_paper(report: JobReport) -> None:
    (style,) = shown(report).all("style")
    for part in (
        "color-scheme: light dark",
        "@media (prefers-color-scheme: dark)",
        "@media (max-width",
        "@media print",
    ):
        assert part in style.text
    assert [m.attributes["content"] for m in shown(report).all("meta") if m.attributes.get("name") == "viewport"] == [
        "width=device-width, initial-scale=1"
    ]


def test_hostile_names_stay_text(report: JobReport) -> None:
    steps = tuple(
        replace(step, id=HOSTILE, kind=HOSTILE, messages=(HOSTILE,), metrics={HOSTILE: 1.0}) for step in report.steps
    )
    hostile = replace(
        report,
        recipe=HOSTILE,
        model=HOSTILE,
        text=HOSTILE,
        steps=steps,
        environment={"runner": HOSTILE, "packages": {HOSTILE: "1"}},
    )
    body = shown(hostile)
    assert body.all("script") == body.all("img") == []
    assert body.all("h1")[0].text == HOSTILE.replace("\x00", "\ufffd")
    assert len(body.all("style")) == 1


def test_a_failed_step_and_its_remedy(tmp_path: Path) -> None:
    failed = {
        "event": "step_failed", "time": 3, "step": 1, "id": "prune", "kind": "prune.wanda", "error": "`a` holds 3 NaN",
        "help": "download it again", "exit_code": 1, "log": "x/log.txt",
    }  # fmt: skip
    plan = made(tmp_path, "failed", done=1, events=[failed])
    verdict = shown(job_report.read(tmp_path, plan.job_id)).all("header")[0].all("div")[0]
    assert verdict.text == "✗FailedStep prune failed: a holds 3 NaNWhat helps: download it again"


def test_an_interrupted_job_says_how_to_go_on(tmp_path: Path) -> None:
    plan = made(tmp_path, "interrupted", done=1)
    body = shown(job_report.read(tmp_path, plan.job_id))
    assert body.all("header")[0].all("pre")[0].text == "runner apply demo.yaml"
    assert body.all("figure") == []


@pytest.mark.parametrize(
    ("signature", "said"),
    [(None, "it is not signed."), ("provenance.json.sig", "it is signed by provenance.json.sig.")],
)
def test_the_provenance_says_whether_it_is_signed(report: JobReport, signature: str | None, said: str) -> None:
    told = shown(replace(report, provenance=True, signature=signature)).all("section")[-1].all("p")[1].text
    assert told == f"provenance.json states what went in and what came out; {said}"


def test_contrast_of_both_schemes() -> None:
    """Text against its ground: 4.5 to 1, as WCAG AA asks."""
    style = (Path(page.__file__).parent / "style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", part))
        for part in style.split("@media print")[0].split("@media (prefers")[:2]
    )
    for colours in (light, dark):
        for ink, ground in (
            ("ink", "page"), ("ink", "card"), ("soft", "page"), ("soft", "card"), ("ink", "code"), ("accent", "card"),
            ("good", "card"), ("bad", "card"), ("warn", "card"), ("good", "good-bg"), ("bad", "bad-bg"),
            ("warn", "warn-bg"), ("ink", "good-bg"), ("ink", "bad-bg"), ("ink", "warn-bg"),
        ):  # fmt: skip
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def _below(element: Element) -> list[Element]:
    children = [child for child in element.children if isinstance(child, Element)]
    return [*children, *(below for child in children for below in _below(child))]


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)

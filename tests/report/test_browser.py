"""The page in Chromium, where there is one: every plot has data, nothing is fetched, complains or spills."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.report.html import page
from tests.report.browser import PROGRAM, Browser, browser
from tests.report.jobs import showcase

# In CI a missing browser is an error: a test that is skipped everywhere shows nothing.
pytestmark = pytest.mark.skipif(
    PROGRAM is None and os.environ.get("CI") != "true", reason="there is no Chromium on this machine"
)
PLOTS = """
[...document.querySelectorAll('figure')].map(figure => {
  const drawn = [...figure.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().height > 0);
  const marks = drawn.flatMap(svg => [...svg.querySelectorAll('rect:not(.empty), circle, polyline')]);
  return [figure.dataset.plot, drawn.length, marks.filter(m => m.getBoundingClientRect().width > 0).length];
})
"""


# The pictures in docs/, which RUNNER_SCREENSHOTS=docs/images makes anew.
PICTURES = {(1100, "light"), (360, "dark")}
PICTURE_HEIGHT = 1500


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(page.html(showcase(tmp_path)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (360, "dark"), (320, "light")])
def test_it_shows_everything_and_fetches_nothing(tab: Browser, file: Path, width: int, scheme: str) -> None:
    tab.open(file, width, scheme)
    assert tab.requested() == [file.as_uri()]
    assert tab.complaints() == []
    assert tab.evaluate(PLOTS) == [
        ["sizes", 1, 4],
        ["quality", 1, 3],
        ["errors", 1, 16],
        ["sensitivity", 1, 112],
        ["loss", 1, 6],
    ]
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(247, 247, 245)" if scheme == "light" else "rgb(19, 21, 23)")
    if (folder := os.environ.get("RUNNER_SCREENSHOTS")) and (width, scheme) in PICTURES:
        tab.screenshot(Path(folder) / f"report-{width}-{scheme}.png", width, PICTURE_HEIGHT)


def test_text_keeps_its_size_on_a_phone(tab: Browser, file: Path) -> None:
    tab.open(file, 360)
    heights = tab.evaluate(
        "[...document.querySelectorAll('svg.narrow text')].map(t => t.getBoundingClientRect().height)"
    )
    assert min(heights) >= 11

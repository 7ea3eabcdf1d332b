"""The manual is in step with the code, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate
from runner import errors
from runner.recipe import load

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.md"), *ROOT.glob("benchmarks/*.md")])


def test_steps_page_is_what_the_schemas_say() -> None:
    assert generate.main(["--check"]) == 0, "run python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_exit_code_is_explained() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    kinds = [
        error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.RunnerError)
    ]
    assert explained == {error.exit_code for error in kinds} | {0, 130}


@pytest.mark.parametrize("page", ["docs/recipe.md", "README.md"])
def test_the_recipe_of_the_page_is_one(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"^```yaml\n(version: 1.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    recipe = load.loads(block.group(1), page)
    assert recipe.steps[-1].id == "quality"

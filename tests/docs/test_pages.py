"""The manual is in step with the code, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate
from runner import errors
from runner.recipe import load
from runner.recipe.schema import kinds as discovery
from runner.recipe.schema import load as schema
from runner.report.step_kinds import example
from runner.steps import kinds
from tests.test_imports import ORDER

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.md"), *ROOT.glob("benchmarks/*.md")])


def test_generated_pages_are_what_the_code_says() -> None:
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


def test_the_order_of_imports_is_that_of_the_test() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"^    cli > .*(?:\n    .*)*", page, re.MULTILINE)
    assert block is not None
    assert " ".join(block.group().split()) == " > ".join(", ".join(rooms) for rooms in ORDER)


@pytest.mark.parametrize("kind", discovery.builtin())
def test_the_example_of_a_kind_is_a_step(kind: str) -> None:
    texts = [
        f"  {name}: {{source: demo:stdlib, split: {name}, sequence_length: 64}}"
        for name in ("calibration", "train", "evaluation")
    ]
    head = ["version: 1", "name: a", "model: {source: demo:tiny-llama}", "data:", *texts, "steps:"]
    build = ["  - build.onnx: {}"] if "engine" in kinds.find(kind).CONSUMES else []
    step = [f"  {line}" for line in example(kind, schema.kind_schema(kind))]
    recipe = load.loads("\n".join([*head, *build, *step]), "a.yaml")
    assert recipe.steps[-1].kind == kind
    trains = kind.startswith(("distill.", "recover.lora", "recover.scales", "prune.gradual"))
    assert (recipe.steps[-1].params.get("data") == "train") == trains


RECIPES = {
    "docs/recipe.md": ["quality"],
    "docs/tutorial.md": ["quality"],
    "docs/how-to-8b-on-one-gpu.md": ["quality"],
    "README.md": ["quality"],
    "docs/coming-from.md": ["gptq", "gptq", "tasks", "onnx"],
}


@pytest.mark.parametrize("page", RECIPES)
def test_the_recipes_of_the_page_are_some(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(version: 1.*?)^```$", text, re.DOTALL | re.MULTILINE)
    recipes = [load.loads(block, page) for block in blocks if "\nextends:" not in block]
    assert [recipe.steps[-1].id for recipe in recipes] == RECIPES[page]

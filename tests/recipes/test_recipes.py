"""Every shipped recipe: it applies, says the same twice, and takes any model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.cli import main
from runner.recipe import load
from runner.recipe.schema import editor
from tests import tiny

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SMALL = {
    "samples": 16, "train_samples": 16, "evaluation_samples": 4, "sequence_length": 128, "batch_size": 2, "gate": 5.0,
    "steps": 2, "distill_steps": 2, "recover_steps": 2, "trials": 3,
}  # fmt: skip

# Every recipe is applied nightly. `.ci/run` applies llama_int4 by a command of README.md, and again when all is cached;
# the steps that the others are made of have tests of their own.
SEARCHES = ("llama_search",)  # these make several jobs
# Its tools have environments that take minutes and gigabytes to build: tests/steps/foreign runs each of them nightly.
TOOLS = ("peers",)
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


def sets(recipe: Path, **values: object) -> list[str]:
    """`--set` arguments for those of `values` that the recipe has as params."""
    known = load.load_all(recipe)[0].params
    return [word for name, value in values.items() if name in known for word in ("--set", f"{name}={value}")]


@every_recipe
def test_editors_find_its_schema(recipe: Path) -> None:
    first = recipe.read_text(encoding="utf-8").splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first)
    assert match is not None
    assert (recipe.parent / match.group(1)).is_file()


@every_recipe
def test_meets_the_schema_of_editors(recipe: Path) -> None:
    import yaml
    from jsonschema import Draft202012Validator

    document = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert [error.message for error in Draft202012Validator(editor.bundled()).iter_errors(document)] == []


@every_recipe
def test_is_listed(recipe: Path) -> None:
    assert f"]({recipe.name})" in (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of jobs for all recipes: what they have in common is computed once."""
    return tmp_path_factory.mktemp("recipes") / "jobs"


@pytest.mark.nightly
@pytest.mark.parametrize(
    "recipe", [path for path in RECIPES if path.stem not in (*SEARCHES, *TOOLS)], ids=lambda path: path.stem
)
def test_applies_and_is_cached_afterwards(
    recipe: Path, jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["apply", str(recipe), "--jobs", str(jobs), *sets(recipe, **SMALL)]
    assert main(command) == 0
    name = re.escape(load.load(recipe).name)
    (job,) = (path for path in jobs.iterdir() if re.fullmatch(f"{name}-[0-9a-f]{{12}}", path.name))
    assert (job / "output" / "README.md").is_file()
    capsys.readouterr()
    assert main(["plan", *command[1:]]) == 0
    out = capsys.readouterr().out
    steps = len(load.load(recipe).steps)
    assert len(re.findall(r" cached ", out)) == steps, out
    assert main(command) == 0


@pytest.mark.nightly
@pytest.mark.parametrize("name", SEARCHES)
def test_searches_and_writes_its_best(
    name: str, jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "recipes" / f"{name}.yaml"
    command = ["apply", str(recipe), "--jobs", str(jobs), *sets(recipe, **SMALL), "--set", "largest=5MB"]
    assert main(command) == 0
    assert main(["search", "best", "--as", "best.yaml", "--jobs", str(jobs)]) == 0
    capsys.readouterr()
    assert main(["plan", "best.yaml", "--locked", "--jobs", str(jobs)]) == 0
    assert "nothing to run: all 3 steps are cached" in capsys.readouterr().out


@every_recipe
def test_takes_a_folder(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of another architecture and texts of one's own need no change of the recipe."""
    monkeypatch.chdir(tmp_path)
    model = tiny.save(tmp_path / "model", "qwen2")
    (tmp_path / "text.txt").write_text("some text of one's own\n" * 40, encoding="utf-8")
    values = {
        "model": model, "calibration": "text.txt", "train": "text.txt", "evaluation": "text.txt", "group_size": 16,
    }  # fmt: skip
    assert main(["validate", "--text-only", str(recipe), *sets(recipe, **values)]) == 0

"""Parents in installed packs, and making one."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import runner
from runner.errors import RecipeError
from runner.recipe import pack_wheel
from runner.recipe.load import load
from runner.recipe.origins import packs
from tests.recipe.elsewhere import BASE, complaint_of, install_pack, write

RECIPES = {
    "int4.yaml": BASE,
    "llama/int3.yaml": "extends: ../int4.yaml\nname: int3\nparams: {bits: 3}\n",
    "llama/out.yaml": "extends: ../../other.yaml\n",
    "llama/local.yaml": "extends: git+file:///srv/r@v1#a.yaml\n",
}


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path in which the package acme-recipes is installed."""
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site"
    install_pack(site, "acme", RECIPES)
    monkeypatch.syspath_prepend(str(site))
    return site


def child(address: str) -> str:
    return write("child.yaml", f"extends: {address}\n")


def refused(address: str, code: str, message: str, help: str) -> None:
    assert complaint_of(child(address)) == (
        f"child.yaml:1:10: error[{code}]: {message}\n"
        f"    1 | extends: {address}\n      |          {'^' * len(address)}\nhelp: {help}"
    )


def test_a_recipe_of_a_pack_and_what_it_extends() -> None:
    recipe = load(child("pack:acme/llama/int3"))
    assert (recipe.name, recipe.params) == ("int3", {"bits": 3})
    assert [(parent.name, parent.package) for parent in recipe.parents] == [
        ("pack:acme/llama/int3", "acme-recipes 1.0"), ("pack:acme/int4", "acme-recipes 1.0"),
    ]  # fmt: skip
    assert load(child("pack:acme/int4.yaml")).parents[0].name == "pack:acme/int4"
    assert recipe.step_span(recipe.steps[0]).file == "pack:acme/int4"  # type: ignore[union-attr]


def test_nothing_of_a_pack_is_imported(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "acme_recipes" / "__init__.py").write_text("raise SystemExit('imported')\n")
    inner = site / "acme_recipes" / "inner"
    inner.mkdir()
    (inner / "a.yaml").write_text(BASE)
    info = site / "acme_recipes-1.0.dist-info" / "entry_points.txt"
    info.write_text("[runner.recipes]\nacme = acme_recipes\ninner = acme_recipes.inner\n")
    assert load(child("pack:acme/int4")).name == "base"
    assert load(child("pack:inner/a")).name == "base"
    assert "acme_recipes" not in sys.modules


def test_what_no_pack_has() -> None:
    known = "it holds `int4`, `llama/int3`, `llama/local` and `llama/out`"
    message = "the pack `acme` (acme-recipes 1.0) holds no recipe `int5`; did you mean `int4`?"
    refused("pack:acme/int5", "R123", message, known)
    message = "no installed package brings the recipe pack `acne`; did you mean `acme`?"
    refused(
        "pack:acne/int4", "R123", message, "`pip install` the package that brings it; installed are `acme` and `runner`"
    )
    for address in ("pack:acme", "pack:acme/", "pack:acme/../int4", "pack:acme/.hidden", "pack:/int4"):
        refused(address, "R122", f"`{address}` is not the address of a pack's recipe", "write `pack:NAME/RECIPE`")


def test_the_recipes_that_come_with_runner() -> None:
    recipe = load("pack:runner/llama_int8_rtn", ["bits=7"])
    assert (recipe.file, recipe.name, recipe.params["bits"]) == ("pack:runner/llama_int8_rtn", "llama-int8-rtn", 7)
    assert [(parent.name, parent.package) for parent in recipe.parents] == [
        ("pack:runner/llama_int8_rtn", f"runner {runner.__version__}")
    ]
    assert load(child("pack:runner/llama_int8_rtn\nname: mine")).parents == recipe.parents
    assert {"llama_int4", "llama_distill"} < set(packs.own().recipes())


def test_the_command_line_names_recipes_of_packs() -> None:
    recipe = load("pack:acme/llama/int3")
    assert [parent.name for parent in recipe.parents] == ["pack:acme/llama/int3", "pack:acme/int4"]
    message = "the pack `acme` (acme-recipes 1.0) holds no recipe `int5`; did you mean `int4`?"
    known = "it holds `int4`, `llama/int3`, `llama/local` and `llama/out`"
    assert complaint_of("pack:acme/int5") == f"error[R123]: {message}\nhelp: {known}"


def test_a_file_that_is_not_there_and_is_called_like_a_recipe_of_runner() -> None:
    for named in ("llama_int4", "recipes/llama_int4.yaml"):
        assert complaint_of(named) == (
            f"error[R101]: cannot read `{named}`: No such file or directory\n"
            "help: the one that comes with runner is `pack:runner/llama_int4`"
        )
    Path("llama_int4").mkdir()
    assert complaint_of("llama_int4") == "error[R101]: cannot read `llama_int4`: Is a directory"


def test_two_packages_that_bring_one_pack(site: Path) -> None:
    install_pack(site, "other", {"a.yaml": BASE})
    (site / "other_recipes-1.0.dist-info" / "entry_points.txt").write_text("[runner.recipes]\nacme = other_recipes\n")
    message = "the recipe pack `acme` is brought by `acme-recipes 1.0` and `other-recipes 1.0`"
    refused("pack:acme/int4", "R123", message, "`pip uninstall` one of them")


def test_a_pack_whose_folder_is_gone(site: Path) -> None:
    for path in sorted((site / "acme_recipes").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (site / "acme_recipes").rmdir()
    message = "the pack `acme` of acme-recipes 1.0 is declared to be in `acme_recipes`, and there is no such folder"
    refused("pack:acme/int4", "R123", message, "install the package again")


def test_a_pack_cannot_reach_out(site: Path) -> None:
    assert complaint_of(child("pack:acme/llama/out")) == (
        "pack:acme/llama/out:1:10: error[R126]: `../../other.yaml` leads out of the pack `acme`\n"
        "    1 | extends: ../../other.yaml\n"
        "      |          ^^^^^^^^^^^^^^^^\n"
        "help: a recipe from elsewhere extends only what came with it, or names it by URL"
    )
    assert complaint_of(child("pack:acme/llama/local")) == (
        "pack:acme/llama/local:1:10: error[R126]: a recipe from elsewhere names `git+file:///srv/r@v1#a.yaml`, a file "
        "of this machine\n"
        "    1 | extends: git+file:///srv/r@v1#a.yaml\n"
        "      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "help: a recipe from elsewhere extends only what came with it, or a remote place"
    )
    Path("secret.yaml").write_text(BASE)
    (site / "acme_recipes" / "link.yaml").symlink_to(Path("secret.yaml").resolve())
    message = "`pack:acme/link` is a link out of the folder of the pack"
    refused("pack:acme/link", "R126", message, "a recipe from elsewhere extends only what came with it")


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """A folder of good recipes."""
    folder = tmp_path / "good"
    for name in ("int4.yaml", "llama/int3.yaml"):
        write(str(folder / name), RECIPES[name])
    (folder / "README.md").write_text("# Ours\n")
    (folder / "code.py").write_text("raise SystemExit\n")
    return folder


def test_a_wheel_holds_recipes_and_metadata_alone_and_installs(recipes: Path, tmp_path: Path) -> None:
    contents = pack_wheel.collect(recipes, "ours")
    name, data = pack_wheel.build(contents, "ours", "1.2.0")
    assert (name, data) == ("ours_recipes-1.2.0-py3-none-any.whl", pack_wheel.build(contents, "ours", "1.2.0")[1])
    (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / name) as archive:
        assert archive.namelist() == [
            "ours_recipes/int4.yaml", "ours_recipes/llama/int3.yaml", "ours_recipes/README.md",
            *(f"ours_recipes-1.2.0.dist-info/{file}" for file in ("METADATA", "WHEEL", "entry_points.txt", "RECORD")),
        ]  # fmt: skip
    target = tmp_path / "installed"
    command = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target), str(tmp_path / name)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(target))
        assert packs.find("ours").package == "ours-recipes 1.2.0"
        assert load(child("pack:ours/llama/int3")).params == {"bits": 3}


def test_a_wheel_of_a_wrong_recipe_is_refused(recipes: Path) -> None:
    write(str(recipes / "bad.yaml"), BASE.replace("bits: 4", "bits: 9"))
    write(str(recipes / "reach.yaml"), "extends: ../child.yaml\n")
    write(str(recipes / "a b.yaml"), BASE)
    with pytest.raises(RecipeError) as caught:
        pack_wheel.collect(recipes, "ours")
    assert [(d.code, d.message) for d in caught.value.diagnostics] == [
        ("R123", f"`{recipes}/a b.yaml` cannot be named by `pack:ours/...`"),
        ("R204", '`bits` must be an integer from 2 to 8, or "auto"; got 9 (from `${bits}`)'),
        ("R126", "`../child.yaml` leads out of the pack `ours`"),
    ]
    assert [d.span.file for d in caught.value.diagnostics if d.span] == [
        str(recipes / name) for name in ("bad.yaml", "reach.yaml")
    ]


def test_what_a_pack_cannot_bring_is_told(recipes: Path) -> None:
    (recipes.parent / "model").mkdir()
    write(str(recipes / "own.yaml"), BASE.replace("demo:tiny-llama", "model"))
    assert pack_wheel.collect(recipes, "ours").notes == ("own.yaml names `model` of this machine",)

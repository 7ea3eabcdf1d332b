from __future__ import annotations

from pathlib import Path

from tests.commands.conftest import Run
from tests.recipe.elsewhere import BASE


def test_a_folder_becomes_a_package(run: Run, folder: Path) -> None:
    (folder / "ours").mkdir()
    (folder / "ours" / "int4.yaml").write_text(BASE)
    assert run("pack", "ours", "--version", "1.2", "-o", "out") == (
        0,
        (
            "wrote out/ours_recipes-1.2-py3-none-any.whl\n"
            "  extends: pack:ours/int4\n"
            "`pip install out/ours_recipes-1.2-py3-none-any.whl` installs it\n"
        ),
        "",
    )
    assert [path.name for path in (folder / "out").iterdir()] == ["ours_recipes-1.2-py3-none-any.whl"]


def test_kinds_of_this_machine_alone_are_told(run: Run, folder: Path) -> None:
    (folder / "ours").mkdir()
    (folder / "toy.yaml").rename(folder / "ours" / "toy.yaml")
    code, out, _ = run("pack", "ours")
    assert code == 0
    assert "note: toy.yaml uses `toy.score`, a kind of this machine alone (RUNNER_STEPS_PATH)\n" in out


def test_what_is_refused(run: Run, folder: Path) -> None:
    (folder / "empty").mkdir()
    for arguments, message in [
        (["none"], "there is no folder `none`\nhelp: name the folder that holds the recipes"),
        (["empty"], "the folder `empty` holds no recipe\nhelp: recipes are .yaml or .yml files"),
        (
            ["empty", "--name", "A_b"],
            "a pack cannot be called `A_b`\nhelp: --name takes lower case letters, digits and `-`",
        ),
        (["empty", "--version", "v1"], "`v1` is not a version\nhelp: write one such as 1.2.0 or 1.2.0rc1"),
    ]:
        assert run("pack", *arguments) == (2, "", f"error: {message}\n")
    (folder / "empty" / "a.yaml").write_text(BASE.replace("bits: 4", "bits: 9"))
    code, _, err = run("pack", "empty")
    assert (code, err.splitlines()[0]) == (
        2, 'empty/a.yaml:6:26: error[R204]: `bits` must be an integer from 2 to 8, or "auto"; got 9 (from `${bits}`)'
    )  # fmt: skip
    assert not (folder / "dist").exists()

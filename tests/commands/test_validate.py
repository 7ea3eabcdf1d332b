from __future__ import annotations

import json
from pathlib import Path

from tests.commands.conftest import Run


def test_good_recipes(run: Run) -> None:
    assert run("validate", "toy.yaml", "toy.yaml") == (0, "toy.yaml: ok, 3 steps\n" * 2, "")


def test_every_complaint_about_every_recipe(run: Run, folder: Path) -> None:
    text = (folder / "toy.yaml").read_text()
    (folder / "a.yaml").write_text(text.replace("version: 1", "version: 2").replace("seed: 0\n", ""))
    (folder / "b.yaml").write_text(text.replace("{points: 4}", "{points: -4}"))
    code, out, err = run("validate", "a.yaml", "toy.yaml", "b.yaml", "none.yaml")
    assert (code, err) == (2, "")
    assert (
        out
        == """\
a.yaml:1:10: error[R203]: `version` must be 1; got 2
    1 | version: 2
      |          ^
toy.yaml: ok, 3 steps

b.yaml:7:25: error[R204]: `points` must be a number of at least 0; got -4
    7 |   - toy.score: {points: -4}
      |                         ^^
help: `runner steps toy.score` lists every parameter

error[R101]: cannot read `none.yaml`: No such file or directory
help: did you mean `toy.yaml`?
"""
    )


def test_it_leaves_nothing_behind(run: Run, folder: Path) -> None:
    run("validate", "toy.yaml")
    assert [path.name for path in folder.iterdir()] == ["toy.yaml"]


def test_json(run: Run, folder: Path) -> None:
    text = (folder / "toy.yaml").read_text()
    (folder / "b.yaml").write_text(text.replace("{points: 4}", "{points: -4}"))
    code, out, _ = run("validate", "b.yaml", "toy.yaml", "--json")
    assert code == 2
    (complaint,) = json.loads(out)
    assert (complaint["file"], complaint["line"], complaint["column"]) == ("b.yaml", 7, 25)
    assert (complaint["code"], complaint["severity"]) == ("R204", "error")


def test_the_model_is_looked_at(run: Run, folder: Path) -> None:
    text = (folder / "toy.yaml").read_text()
    (folder / "toy.yaml").write_text(text.replace("demo:tiny-llama", "./nowhere"))
    code, out, _ = run("validate", "toy.yaml")
    assert code == 2
    assert out.startswith("toy.yaml:5:")
    assert "error[R430]: there is no folder `./nowhere` in " in out


def test_the_model_is_not_looked_at_with_text_only(run: Run, folder: Path) -> None:
    text = (folder / "toy.yaml").read_text()
    (folder / "toy.yaml").write_text(text.replace("demo:tiny-llama", "./nowhere"))
    assert run("validate", "--text-only", "toy.yaml") == (0, "toy.yaml: ok, 3 steps\n", "")

"""Task files in a plan: found, part of the step's key by their contents, and refused in whole messages."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runner.data import harness_tasks
from runner.errors import RecipeError
from runner.plan import resolve
from runner.plan.types import PlannedStep
from tests.plan.recipes import recipe

HELP = "name a task file (.yaml), a folder of them, `demo:continuation`, or a task of lm-evaluation-harness"

BROKEN = (
    "the task file `{file}` cannot be read: while parsing a flow node expected the node content, but found "
    "'<stream end>' in \"<unicode string>\", line 2, column 1: ^"
)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "package_version", lambda package: "1.0")


def planned(tasks: str) -> PlannedStep:
    return resolve.resolve(recipe(f"steps:\n  - evaluate.tasks: {{tasks: [{tasks}]}}\n"), device="cpu").steps[0]


def refused(tasks: str) -> list[tuple[str, str, str | None]]:
    with pytest.raises(RecipeError) as caught:
        planned(tasks)
    return [(found.code, found.message, found.help) for found in caught.value.diagnostics]


def own(folder: Path) -> Path:
    shutil.copytree(harness_tasks.locate("demo:continuation") or folder, folder)
    return folder


def test_the_plan_names_no_folder_and_the_step_gets_one() -> None:
    step = planned('"demo:continuation", arc_easy')
    assert str(Path.home()) not in str(step.public()) or Path.home() == Path("/")
    assert list(step.tasks["tasks"].paths) == ["demo:continuation"]
    assert step.tasks["tasks"].paths["demo:continuation"].name == "continuation"
    assert step.key_inputs["tasks"]["tasks"][1] == "arc_easy"
    assert "tasks" not in step.key_inputs["params"]
    assert step.key_inputs["environment"]["lm-eval"] == "1.0"


def test_contents_decide_the_key_and_places_do_not(tmp_path: Path) -> None:
    first, second = own(tmp_path / "a"), own(tmp_path / "b")
    keys = [planned(f'"{folder}"').key for folder in (first, second)]
    assert keys[0] == keys[1] == planned('"demo:continuation"').key
    file = second / "continuation.jsonl"
    file.write_text(file.read_text().replace("print", "tnirp"))
    assert planned(f'"{second}"').key != keys[0]
    one = [planned(f'"{folder / "continuation.yaml"}"').key for folder in (first, second)]
    assert len({*one, *keys}) == 3


def test_the_worker_is_told_where_they_are() -> None:
    from runner.execute import messages, requests
    from runner.execute.settings import ApplySettings

    plan = resolve.resolve(recipe('steps:\n  - evaluate.tasks: {tasks: ["demo:continuation"]}\n'), device="cpu")
    made = requests.request(plan, plan.steps[0], {}, Path("/s"), ApplySettings("c", threads=1))
    path = str(harness_tasks.locate("demo:continuation"))
    assert made.tasks == {"tasks": {"demo:continuation": path}}
    assert messages.decode(messages.encode_run(made)) == replace(made)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    assert refused("./none, own.yaml, ./a.json") == [
        ("R469", f"there is no task file or folder `./none` in {tmp_path}", HELP),
        ("R469", f"there is no task file or folder `own.yaml` in {tmp_path}", HELP),
        ("R469", "`./a.json` is no task file: its suffix is `.json`", HELP),
    ]
    assert refused('"demo:continuatoin"') == [
        (
            "R469",
            "there is no embedded task `demo:continuatoin`; did you mean `continuation`?",
            "there is `demo:continuation`",
        )
    ]


@pytest.mark.parametrize(
    ("content", "message", "help"),
    [
        ("output_type: multiple_choice\n", "`{file}` defines no task: it has no text `task`",
         "write `task: NAME` into it"),
        ("- a\n", "the task file `{file}` must be a mapping", "write `task: NAME`, `dataset_path: ...`"),
        ("a: [\n", BROKEN, None),
    ],
)  # fmt: skip
def test_files_that_are_no_tasks(content: str, message: str, help: str | None, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    [(code, said, remedy)] = refused(f'"{file}"')
    assert (code, said, remedy) == ("R469", message.format(file=file), help)


def test_folders(tmp_path: Path) -> None:
    assert refused(f'"{tmp_path}/"') == [
        ("R469", f"`{tmp_path}` holds no task file: no .yaml file with a text `task`", HELP)
    ]
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("task: same\nprocess: !function utils.f\n")
    [(_, message, _)] = refused(f'"{tmp_path}/"')
    assert message == f"`{tmp_path / 'b.yaml'}` and `{tmp_path / 'a.yaml'}` both define the task `same`"

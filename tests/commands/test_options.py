"""Arguments become frozen dataclasses at once: argparse ends in cli.py and commands/."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from pathlib import Path

import pytest

from runner import cli
from runner.commands import options

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = {
    "apply": ["a.yaml", "--set", "bits=3"], "plan": ["a.yaml"], "validate": ["a.yaml"], "show": ["a.yaml"],
    "lock": ["a.yaml"], "pack": ["folder"], "new": ["demo:tiny-llama"], "steps": [], "jobs": [], "schema": [],
    "generate": ["a-", "text"], "verify": ["a-"], "reproduce": ["a-"], "store": ["ls"], "report": ["a-"],
    "diff": ["a-", "b-"], "compare": [], "doctor": [], "env": ["list"], "search": ["show"],
}  # fmt: skip


def read(command: str, *arguments: str) -> object:
    module = importlib.import_module(f"runner.commands.{command}")
    parser = cli.Parser(prog="runner")
    module.configure(parser)
    args = parser.parse_args(arguments)
    args.command_line = "runner"
    return module.read_options(args)


def test_only_the_command_line_knows_argparse() -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "runner").rglob("*.py"))
        if "argparse" in path.read_text(encoding="utf-8")
    ]
    programs = ("runner/runtime/serving/llama_cpp_program.py",)  # run by other interpreters, as commands of their own
    assert [user for user in users if not user.startswith(("runner/cli.py", "runner/commands/", *programs))] == []


def test_in_a_command_only_the_functions_of_the_parser_see_a_namespace() -> None:
    allowed = {"read_options", "resolving", "jobs_folder", "remote_url", "executor"}
    seers = {
        f"{path.stem}.{node.name}"
        for path in sorted((ROOT / "runner" / "commands").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and "Namespace" in ast.unparse(node.args) and node.name not in allowed
    }
    assert seers == set()


def test_there_is_an_example_of_every_command() -> None:
    assert set(EXAMPLES) == set(cli.COMMANDS)


@pytest.mark.parametrize("command", EXAMPLES)
def test_options_are_frozen(command: str) -> None:
    found = read(command, *EXAMPLES[command])
    assert dataclasses.is_dataclass(found)
    field = dataclasses.fields(found)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(found, field, None)
    assert hash(found)  # no list and no mapping that somebody could change


def test_the_shared_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_JOBS", "elsewhere")
    monkeypatch.setenv("RUNNER_STORE_REMOTE", "s3://bucket")
    found = read("apply", "a.yaml", "b.yaml", "--set", "bits=3", "--set", "x=y", "--device", "cpu", "--locked")
    assert dataclasses.asdict(found) == {  # type: ignore[call-overload]
        "recipes": ("a.yaml", "b.yaml"),
        "resolving": dataclasses.asdict(options.Resolving(("bits=3", "x=y"), Path("elsewhere"), "cpu", True, False)),
        "offline": False, "threads": None, "remote": "s3://bucket", "wait": True, "timeout": None, "keep_going": None,
        "progress": "plain", "junit": None, "command": "runner",
        "executor": {"name": "local", "address": None, "sbatch": (), "at_once": None}, "maker": None, "detach": (),
    }  # fmt: skip
    assert read("store", "gc", "--older-than", "2h").older_than == 7200.0  # type: ignore[attr-defined]
    assert read("lock", "--upgrade", "a.yaml").upgrade == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize("given", [[], ["--jobs", "there"]])
def test_the_jobs_folder_is_the_option_then_the_environment(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_JOBS", "elsewhere")
    found = read("jobs", *given)
    assert found.jobs == Path("there" if given else "elsewhere")  # type: ignore[attr-defined]

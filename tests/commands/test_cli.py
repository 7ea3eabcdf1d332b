from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import runner
from runner import cli
from tests.commands.conftest import Run


def test_help(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: runner COMMAND ...\n\nCompress language models from one validated recipe.\n")
    for name, text in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.MULTILINE)


def test_no_command_is_help_and_a_complaint(run: Run) -> None:
    code, out, _ = run()
    assert code == 2
    assert out == run("--help")[1]


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"runner {runner.__version__}\n", "")


def test_every_command_has_a_module_and_the_other_way_round() -> None:
    folder = Path(cli.__file__).parent / "commands"
    shared = {
        "__init__", "cluster", "crash", "detached", "folders", "options", "reports", "searching", "several", "together",
    }  # fmt: skip
    modules = {path.stem for path in folder.glob("*.py")} - shared
    assert modules == set(cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: runner {command} ")


def test_an_unknown_command(run: Run) -> None:
    assert run("aply", "toy.yaml") == (
        2, "", "error: there is no command `aply`; did you mean `apply`?\nhelp: `runner --help` lists the commands\n"
    )  # fmt: skip


def test_a_command_like_no_other(run: Run) -> None:
    assert run("xyzzy") == (
        2, "", "error: there is no command `xyzzy`\nhelp: `runner --help` lists the commands\n"
    )  # fmt: skip


def test_an_unknown_option(run: Run) -> None:
    message = "`runner plan` does not take `--jbos`; did you mean `--jobs`?"
    assert run("plan", "toy.yaml", "--jbos", "x") == (
        2, "", f"error: {message}\nhelp: `runner plan --help` lists what it takes\n"
    )  # fmt: skip


def test_an_option_before_the_command(run: Run) -> None:
    code, out, err = run("--jobs", "x", "plan", "toy.yaml")
    assert (code, out) == (2, "")
    assert err == "error: unrecognized arguments: --jobs\nhelp: `runner --help` shows how to use it\n"


def test_a_missing_argument(run: Run) -> None:
    assert run("apply") == (
        2, "", "error: the following arguments are required: RECIPE\nhelp: `runner apply --help` shows how to use it\n"
    )  # fmt: skip


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`runner schema` has a bug; crash logs go to the folder returned."""
    from runner.recipe.schema import editor

    def bug() -> None:
        raise ZeroDivisionError("nobody saw this coming")

    monkeypatch.setattr(editor, "bundled", bug)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runner"


def test_an_unforeseen_error_in_a_folder_that_is_gone(
    run: Run, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run("schema")[0] == 1
    (log,) = broken.iterdir()
    assert "folder: gone (No such file or directory)\n" in log.read_text("utf-8")


def test_an_unforeseen_error_goes_to_a_file(run: Run, broken: Path) -> None:
    code, out, err = run("schema")
    (log,) = broken.iterdir()
    assert (code, out) == (1, "")
    assert err == (
        "error: runner met an error it did not expect: ZeroDivisionError: nobody saw this coming\n"
        f"help: {log} has the traceback; please paste it into a bug report\n"
    )
    text = log.read_text()
    assert "arguments: ['schema']\n" in text
    assert "Traceback (most recent call last):" in text


def test_an_unforeseen_error_where_nothing_can_be_written(
    run: Run, broken: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(folder / "file"))
    code, _, err = run("schema")
    assert code == 1
    assert "Traceback (most recent call last):" in err


def test_a_developer_sees_the_traceback(run: Run, broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("schema")


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.recipe.schema import editor

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(editor, "bundled", stop)
    assert run("schema") == (130, "", "")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m runner schema | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines()[-1][-1], done.stderr) == ("0", "")


def test_a_terminal_without_unicode(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runner", "steps", "toy.score"], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"metric ? {max: x}" in done.stdout

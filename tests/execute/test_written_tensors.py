"""What a step writes is compared with what its plan foretold, before it counts as done."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.cli import main
from tests import tiny

KIND = """
from runner.contracts.step_kind import Cost, Result

VERSION, CONSUMES, PRODUCES, REQUIRES, METRICS = 1, ("checkpoint",), "checkpoint", (), ()
check = lambda params, inputs: []
estimate = lambda params, inputs: Cost(0, 0, 0, 0.0)
outcome = lambda params, inputs: inputs.checkpoint
changes = lambda params, inputs: ()

def run(ctx):
    from runner.model.checkpoint import derived
    from runner.model.checkpoint.reader import CheckpointReader
    with CheckpointReader(ctx.inputs["checkpoint"].path) as source:
        names = {name: name for name in source.names() if name not in ctx.params["without"]}
        tensors = derived.Selection(names, "left out")
        if ctx.params["negated"]:
            values = {name: lambda name=name: -source.read(name) for name in ctx.params["negated"]}
            tensors = derived.Patches(values)
        account = derived.write(source, derived.Derived(tensors), ctx.out_dir)
    return Result(account=account if ctx.params["accounts"] else None)
"""
SCHEMA = """{"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Copy", "description": "Copy tensors.",
"type": "object", "additionalProperties": false,
"properties": {"without": {"type": "array", "items": {"type": "string"}, "default": [], "description": "Left out."},
"negated": {"type": "array", "items": {"type": "string"}, "default": [], "description": "With other values."},
"accounts": {"type": "boolean", "default": true, "description": "Return the account."}}}"""


def apply(folder: Path, params: str, monkeypatch: pytest.MonkeyPatch) -> int:
    kinds = folder / "kinds"
    (kinds / "leaky").mkdir(parents=True)
    (kinds / "leaky" / "copy.py").write_text(KIND)
    (kinds / "leaky.copy.schema.json").write_text(SCHEMA)
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(kinds))
    model = tiny.save(folder / "model", "llama")
    recipe = folder / "r.yaml"
    step = f"  - leaky.copy: {{{params}}}\n    id: it\n"
    recipe.write_text(f"version: 1\nname: leaky\nmodel: {{source: {model}}}\nsteps:\n{step}")
    return main(["apply", str(recipe), "--jobs", str(folder / "jobs"), "--progress", "plain"])


def test_a_tensor_that_is_left_out_fails_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(tmp_path, "without: [model.norm.weight]", monkeypatch) == 1
    message = "the checkpoint that was written is not the planned one: `model.norm.weight` is missing"
    assert message in capsys.readouterr().out
    assert not list((tmp_path / "jobs").glob("leaky-*/output"))


def test_a_kept_tensor_with_other_bytes_fails_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name and shape are the planned ones."""
    assert apply(tmp_path, "negated: [model.norm.weight]", monkeypatch) == 1
    message = (
        "the checkpoint that was written is not the planned one: "
        "`model.norm.weight` is planned to stay and not copied from the input"
    )
    assert message in capsys.readouterr().out


def test_a_checkpoint_without_an_account_fails_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(tmp_path, "accounts: false", monkeypatch) == 1
    assert "and 25 more are planned to stay and not copied from the input" in capsys.readouterr().out


@pytest.mark.nightly
def test_a_whole_one_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(tmp_path, "", monkeypatch) == 0
    capsys.readouterr()
    (job,) = (tmp_path / "jobs").glob("leaky-*")
    assert main(["report", job.name, "--jobs", str(tmp_path / "jobs")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "tensors:" in line)
    assert line.startswith(" it: tensors: 30 kept (")

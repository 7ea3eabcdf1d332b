"""Kinds from elsewhere: a folder of one's own, and installed packages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import MachineError, UsageError
from runner.recipe.load import loads
from runner.recipe.schema import editor, load
from runner.recipe.schema import kinds as discovery
from runner.steps import kinds
from tests.recipe.cases import complaint_of, recipe

MODULE = """\
from runner.errors import Diagnostic
VERSION = 1
CONSUMES = ("checkpoint",)
PRODUCES = "quantized-checkpoint"
REQUIRES = ()
METRICS = ()
def check(params, inputs): return []
def estimate(params, inputs): ...
def run(ctx): ...
"""
RULES = {
    "title": "Log2",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "bits": {"type": "integer", "minimum": 2, "maximum": 8, "default": 4},
        "ignore": {"$ref": "../core.schema.json#/$defs/patterns", "default": ["lm_head"]},
    },
}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What is known of installed packages and folders is kept for the life of a process."""
    caches = (discovery._installed, discovery._in_folders, load._kind_schema)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def write_kind(folder: Path, rules: object = RULES, module: str = MODULE) -> None:
    (folder / "quantize").mkdir(parents=True, exist_ok=True)
    (folder / "quantize" / "log2.py").write_text(module)
    (folder / "quantize.log2.schema.json").write_text(json.dumps(rules))


def write_package(folder: Path, entries: str, module: str = MODULE) -> None:
    (folder / "acme_steps").mkdir()
    (folder / "acme_steps" / "__init__.py").write_text("")
    (folder / "acme_steps" / "ternary.py").write_text(module)
    info = folder / "acme_steps-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-steps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[runner.steps]\n{entries}\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("acme_steps")]:
        del sys.modules[name]


def test_a_kind_in_a_folder(folder: Path) -> None:
    write_kind(folder)
    assert "quantize.log2" in load.kinds()
    found = loads(recipe("- quantize.log2: {}"), "r.yaml")
    assert (found.steps[0].id, found.steps[0].params) == ("log2", {"bits": 4, "ignore": ["lm_head"]})
    assert kinds.find("quantize.log2").PRODUCES == "quantized-checkpoint"
    assert "quantize.log2" in editor.bundled()["$defs"]
    assert complaint_of(recipe("- quantize.lgo2: {}")).splitlines()[0] == (
        "r.yaml:6:5: error[R210]: unknown step kind `quantize.lgo2`; did you mean `quantize.log2`?"
    )


def test_modules_of_a_folder_may_import_one_another(folder: Path) -> None:
    write_kind(
        folder, module=MODULE + "from runner_steps_path.quantize import log2_math\nVERSION = log2_math.VERSION\n"
    )
    (folder / "quantize" / "log2_math.py").write_text("VERSION = 7\n")
    assert kinds.find("quantize.log2").VERSION == 7
    assert "quantize.log2_math" not in load.kinds()


def test_two_folders_and_a_change_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kind(tmp_path / "one")
    write_kind(tmp_path / "two", module=MODULE.replace("VERSION = 1", "VERSION = 2"))
    monkeypatch.setenv("RUNNER_STEPS_PATH", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    assert kinds.find("quantize.log2").VERSION == 1
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(tmp_path / "two"))
    assert kinds.find("quantize.log2").VERSION == 2


def test_a_built_in_kind_cannot_be_replaced(folder: Path) -> None:
    (folder / "quantize").mkdir()
    (folder / "quantize" / "rtn.py").write_text("")
    (folder / "quantize.rtn.schema.json").write_text("{}")
    assert "bits" in load.kind_schema("quantize.rtn")["properties"]


def test_a_folder_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_STEPS_PATH", str(folder / "nowhere"))
    with pytest.raises(UsageError) as caught:
        load.kinds()
    assert caught.value.render() == f"error: RUNNER_STEPS_PATH names {folder / 'nowhere'}, which is not a folder"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "the schema {file} is not a mapping"),
        ({"type": "objekt"}, "the schema of step kind `quantize.log2`, {file}, is wrong: 'objekt' is not valid under"),
        ({"type": "object"}, "the schema of step kind `quantize.log2`, {file}, lets unknown parameters through"),
    ],
)
def test_a_schema_that_is_wrong(folder: Path, rules: object, message: str) -> None:
    write_kind(folder, rules)
    with pytest.raises(MachineError) as caught:
        load.kind_schema("quantize.log2")
    assert caught.value.message.startswith(message.format(file=folder / "quantize.log2.schema.json"))


def test_a_schema_that_is_no_json(folder: Path) -> None:
    write_kind(folder)
    (folder / "quantize.log2.schema.json").write_text("{,}")
    with pytest.raises(MachineError, match=r"^the schema .*quantize\.log2\.schema\.json cannot be read: "):
        load.kind_schema("quantize.log2")


def test_a_module_that_does_not_import(folder: Path) -> None:
    write_kind(folder, module="import nowhere_to_be_found\n")
    with pytest.raises(MachineError) as caught:
        kinds.find("quantize.log2")
    assert caught.value.render() == (
        f"error: step kind `quantize.log2` of {folder} cannot be imported: No module named 'nowhere_to_be_found'\n"
        "help: `runner doctor` lists what this installation lacks"
    )


def test_a_module_that_does_not_meet_the_protocol(folder: Path) -> None:
    write_kind(folder, module=MODULE.replace("METRICS = ()\n", "").replace("VERSION = 1\n", ""))
    with pytest.raises(MachineError) as caught:
        kinds.find("quantize.log2")
    assert caught.value.render() == (
        "error: step kind `quantize.log2` does not meet the protocol: "
        f"{folder}/quantize/log2.py lacks VERSION, METRICS\n"
        "help: runner/contracts/step_kind.py lists what a kind needs"
    )


def test_a_kind_of_an_installed_package(site: Path) -> None:
    write_package(site, "quantize.ternary = acme_steps.ternary")
    (site / "acme_steps" / "ternary.schema.json").write_text(json.dumps(RULES))
    assert "quantize.ternary" in load.kinds()
    assert loads(recipe("- quantize.ternary: {bits: 2}"), "r.yaml").steps[0].params["bits"] == 2
    assert kinds.find("quantize.ternary").VERSION == 1


def test_a_package_names_its_schema(site: Path) -> None:
    write_package(site, "quantize.ternary = acme_steps.ternary", MODULE + 'SCHEMA = "rules.json"\n')
    (site / "acme_steps" / "rules.json").write_text(json.dumps(RULES))
    assert load.kind_schema("quantize.ternary")["title"] == "Log2"


def test_a_package_without_a_schema(site: Path) -> None:
    write_package(site, "quantize.ternary = acme_steps.ternary")
    with pytest.raises(MachineError) as caught:
        load.kind_schema("quantize.ternary")
    assert caught.value.render() == (
        "error: step kind `quantize.ternary` of acme-steps has no schema\n"
        "help: put ternary.schema.json next to its module, or name a file in SCHEMA"
    )


def test_finding_unknown_and_built_in_kinds() -> None:
    with pytest.raises(UsageError) as caught:
        kinds.find("quantize.nothing")
    assert caught.value.render() == (
        "error: unknown step kind `quantize.nothing`\nhelp: `runner steps` lists every kind"
    )
    assert kinds.find("quantize.rtn").PRODUCES == "quantized-checkpoint"
    assert kinds.names() == load.kinds()

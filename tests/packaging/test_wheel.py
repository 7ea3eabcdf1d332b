"""The wheel, built from the source distribution and installed into an empty environment, applies a recipe there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel. Its dependencies are those of the running one, put behind it."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False)
    (wheel,) = built.glob("*.whl")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(home / "bin" / "python"),
        "install",
        "--no-deps",
        str(wheel),
        cwd=home,
    )
    site = next(home.glob("lib/python*/site-packages"))
    # A folder that a .pth file names is searched last, and its own .pth files are not read: no way to this checkout.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home


def run(*command: str, cwd: Path) -> str:
    """stdout of a command that must succeed, without this process's Python settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RUNNER"))}
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_wheel_holds_package_schemas_recipes_and_demo_alone(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "runner").rglob("*.py")}
    assert sources <= names
    for folder in ("schemas", "recipes"):
        files = {path for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {f"runner/_data/{path.relative_to(ROOT)}" for path in files} <= names
    assert "runner/demo/models/tiny-llama/model.safetensors" in names
    assert "runner/demo/data/stdlib/LICENSE-PSF.txt" in names
    assert {name.split("/")[0] for name in names} == {"runner", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}


def test_source_distribution_holds_what_tests_need(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "constraints.txt", "tests/conftest.py",
              "schemas/core.schema.json", "recipes/llama_int4.yaml", "docs/index.md", ".ci/run"}  # fmt: skip
    assert wanted <= names
    assert not [name for name in names if name.startswith("jobs/") and name != "jobs/README.md"]


@pytest.mark.nightly
def test_installed_wheel_applies_a_recipe(installed: Path, tmp_path: Path) -> None:
    python = str(installed / "bin" / "python")
    where = run(python, "-c", "import runner; print(runner.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.resolve())
    command = [
        str(installed / "bin" / "runner"), "apply", "pack:runner/llama_int8_rtn",
        "--set", "evaluation_samples=2", "--set", "sequence_length=64",
    ]  # fmt: skip
    run(*command, cwd=tmp_path)
    (job,) = (path for path in (tmp_path / "jobs").iterdir() if path.name.startswith("llama-int8-rtn-"))
    assert (job / "output" / "model.safetensors").is_file()
    assert "cached" in run(*command, cwd=tmp_path)

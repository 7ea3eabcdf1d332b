"""Models of the Hub that another program has cached without the adapter that they carry."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from runner.errors import RecipeError
from runner.model.checkpoint import adapter_config, adapter_writer
from runner.model.checkpoint.headers import read_headers
from runner.model.source import hub, locate
from runner.model.source.locate import demo_path
from runner.plan import resolve
from runner.plan.types import Plan
from tests.model.source.hub_server import COMMIT, hub_of, point_at
from tests.plan.recipes import HEAD, recipe

STEPS = "steps:\n  - evaluate.perplexity: {data: evaluation}\n"
TREE = f"/api/models/org/name/tree/{COMMIT}"
WEIGHTS = "adapter/adapter_model.safetensors"


def planned(steps: str = STEPS) -> Plan:
    return resolve.resolve(recipe(steps, HEAD.replace("demo:tiny-llama", "org/name")), device="cpu")


@pytest.fixture
def plain() -> dict[str, bytes]:
    folder = demo_path("models", "tiny-llama")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def adapted(plain: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """The files of a model that carries an adapter."""
    folder = shutil.copytree(demo_path("models", "tiny-llama"), tmp_path / "adapted")
    name = "model.layers.0.self_attn.o_proj"
    rows, columns = read_headers(folder)[f"{name}.weight"].shape
    tensors = {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)}
    adapter_writer.write(folder, adapter_config.config(2, 4.0, [name]), tensors)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetch(files: Mapping[str, bytes]) -> Path:
    """Cache a model as transformers does: file by file, and nothing of other folders."""
    from huggingface_hub import hf_hub_download

    for name in files:
        if "/" not in name:
            path = hf_hub_download("org/name", name)
    return Path(path).parent


def test_the_adapter_is_fetched_that_another_program_left(
    plain: dict[str, bytes], adapted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of(adapted) as (address, _):
        point_at(address, tmp_path / "cache", monkeypatch)
        folder = fetch(adapted)
        assert locate.locate_model(recipe(STEPS, HEAD.replace("demo:tiny-llama", "org/name")).model)[0] == folder
        plan = planned()
        assert plan.model.path is None
        assert plan.model.facts.adapter == adapter_config.config(2, 4.0, ["model.layers.0.self_attn.o_proj"])
        assert plan.warnings == ()
        assert resolve.with_model(plan).model.path == folder
        assert (folder / WEIGHTS).read_bytes() == adapted[WEIGHTS]
        here = planned()
        assert (here.model.path, here.key) == (folder, plan.key)
    with hub_of(plain) as (address, _):
        point_at(address, tmp_path / "other", monkeypatch)
        fetch(plain)
        assert planned().key != plan.key


def test_a_model_without_an_adapter_is_asked_about_once(
    plain: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with hub_of(plain) as (address, asked):
        point_at(address, cache, monkeypatch)
        folder = fetch(plain)
        asked.clear()
        plan = planned()
        assert asked == [f"HEAD /org/name/resolve/{COMMIT}/{WEIGHTS}", f"GET {TREE}"]
        asked.clear()
        assert (plan.model.path, plan.model.facts.adapter, plan.warnings) == (folder, None, ())
        assert planned().key == plan.key
        assert asked == []
    point_at(None, cache, monkeypatch)
    again = planned()
    assert (again.key, again.warnings) == (plan.key, ())


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_cannot_be_asked_is_told(
    offline: bool, adapted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights may be all that there is, or not: the plan says that it does not know."""
    with hub_of(adapted) as (address, _):
        point_at(address, tmp_path / "cache", monkeypatch)
        folder = fetch(adapted)
    point_at(None if offline else address, tmp_path / "cache", monkeypatch)
    plan = planned()
    assert plan.model.path == folder
    [warning] = plan.warnings
    assert warning.render().startswith(
        "small.yaml:3:17: warning[R458]: the local cache has `org/name` without an adapter, as other programs fetch "
        "models, and the Hub cannot be asked whether it carries one in `adapter/`: this plan takes it for a model "
        "without\n"
    )
    assert warning.help == "plan once with the network; what the Hub says of this commit is kept"


def test_a_download_without_the_adapter_is_none(
    adapted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub gives a folder for complete of which it has no list, where it reaches nobody."""
    with hub_of(adapted) as (address, _):
        point_at(address, tmp_path / "cache", monkeypatch)
        folder = fetch(adapted)
    point_at(None, tmp_path / "cache", monkeypatch)
    assert hub.download_model("org/name", COMMIT, adapted=False) == folder
    with pytest.raises(RecipeError, match=f"`{WEIGHTS}` of the model is not in"):
        hub.download_model("org/name", COMMIT, adapted=True)

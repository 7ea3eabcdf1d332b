"""Kill -9 of the worker: every kind that trains ends with the bytes of an uninterrupted run, wherever it was hit."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.cli import main
from runner.errors import MachineError
from tests import tiny
from tests.training.mortal import DEATHS

ROOT = Path(__file__).parents[2]
SAVED, KILLED = 3, 5  # the step that the last training checkpoint is of, and the one after which the worker dies
TRAINING = {"data": "text", "steps": 8, "batch_size": 4, "learning_rate": 0.01, "precision": "fp32", "save_every": 3}
MEASURED = {"evaluation": "text", "evaluate_every": 2}
LORA = {"rank": 2, "target_modules": ["q_proj", "up_proj"], "dropout": 0.1, **TRAINING}
STEPS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (  # id, from, kind, parameters
    ("half", "model", "prune.magnitude", {"sparsity": 0.5}),
    ("packed", "model", "quantize.rtn", {"bits": 3, "group_size": 16}),
    ("logits", "model", "distill.logits", {"student": {"layers": 2}, **TRAINING, **MEASURED}),
    ("features", "model", "distill.features", {"student": {"layers": [0, 2]}, **TRAINING}),
    ("dense-lora", "model", "recover.lora", {"loss": "next_token", **LORA}),
    ("pruned-lora", "half", "recover.lora", {"variant": "dora", **LORA}),
    ("packed-lora", "packed", "recover.lora", {**LORA, **MEASURED}),
    ("scales", "packed", "recover.scales", {"norms": True, **TRAINING}),
    ("gradual", "model", "prune.gradual", {"loss": "next_token", "update_every": 2, **TRAINING}),
)
TRAINED = tuple(id for id, *_ in STEPS[2:])
IN_TRAINING = f"train {KILLED}"
PLACES: dict[str, Sequence[str]] = {  # of each step, in the order in which it comes to them
    "logits": ("layer 5", IN_TRAINING, "writing"),  # layers 1 to 3 are of the choice of layers, 4 to 6 of the teacher
    "packed-lora": (IN_TRAINING, "result"),
    "scales": (IN_TRAINING, "writing"),
}
DEATHS_OF = {id: PLACES.get(id, (IN_TRAINING,)) for id in TRAINED}


class Jobs:
    """A recipe of every training kind, applied in a folder until it is done."""

    def __init__(self, folder: Path, recipe: Path, deaths: Sequence[tuple[str, str]]) -> None:
        (folder / "deaths.json").write_text(json.dumps(deaths))
        jobs = folder / "jobs"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            patch.setenv(DEATHS, str(folder / "deaths.json"))
            patch.setattr(subprocess, "Popen", mortal)
            command = ["apply", str(recipe), "--jobs", str(jobs), "--threads", "1", "--progress", "none"]
            self.codes = [main(command) for _ in range(len(deaths) + 1)]
        self.left = json.loads((folder / "deaths.json").read_text())
        records = [json.loads(path.read_text()) for path in jobs.glob("store/*/record.json")]
        self.records = {record["id"]: record for record in records}
        (events,) = jobs.glob("kills-*/events.jsonl")
        started = (json.loads(line) for line in events.read_text().splitlines())
        self.started = [event for event in started if event["event"] == "step_started"]


def mortal(command: Sequence[str], *args: Any, **options: Any) -> subprocess.Popen[Any]:
    """Start a process; a worker in its mortal form."""
    if list(command[1:]) == ["-m", "runner.execute.worker"]:
        command = [command[0], "-m", "tests.training.mortal"]
    started: subprocess.Popen[Any] = START(command, *args, **options)
    return started


START: Any = subprocess.Popen


def write_recipe(folder: Path, steps: Sequence[tuple[str, str, str, dict[str, Any]]] = STEPS) -> Path:
    model = tiny.letters(tiny.save(folder / "model"))
    chance = random.Random(0)
    (folder / "text.txt").write_text(" ".join(chance.choice("abcdefghij") for _ in range(400)))
    entries = [{kind: params, "id": id, "from": source} for id, source, kind, params in steps]
    data = {"text": {"source": str(folder / "text.txt"), "samples": 20, "sequence_length": 16}}
    document = {"version": 1, "name": "kills", "model": {"source": str(model)}, "data": data, "steps": entries}
    (folder / "kills.yaml").write_text(json.dumps(document, indent=1))
    return folder / "kills.yaml"


def same_result(whole: Jobs, killed: Jobs, id: str, index: int, resumed_at: Sequence[int]) -> None:
    """Compare digest, metrics and loss curve, and check that only unsaved training steps ran again."""
    found, expected = killed.records[id], whole.records[id]
    assert found["digest"] == expected["digest"]
    for record in (found, expected):
        record["metrics"].pop("tokens_per_second", None)
    assert found["metrics"] == expected["metrics"]
    assert found["details"] == expected["details"]
    resumed = [event["resumed_at"] for event in killed.started if event["step"] == index and event["unit"] == "step"]
    assert resumed == resumed_at


@pytest.mark.nightly
def test_a_killed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """One kind of training, killed once; the nightly tests below kill all of them, in several places."""
    steps = [step for step in STEPS if step[0] in ("packed", "scales")]
    recipe = write_recipe(tmp_path, steps)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = Jobs(tmp_path / "whole", recipe, ())
    killed = Jobs(tmp_path / "killed", recipe, [("scales", IN_TRAINING)])
    assert (whole.codes, killed.codes, killed.left) == ([0], [MachineError.exit_code, 0], [])
    same_result(whole, killed, "scales", 1, [SAVED])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("whole"), recipe, ())


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Jobs:
    deaths = [(id, place) for id in TRAINED for place in DEATHS_OF[id]]
    return Jobs(tmp_path_factory.mktemp("killed"), recipe, deaths)


@pytest.mark.nightly
def test_the_worker_was_killed_in_every_place(whole: Jobs, killed: Jobs) -> None:
    assert (whole.codes, whole.left) == ([0], [])
    count = sum(len(places) for places in DEATHS_OF.values())
    assert (killed.codes, killed.left) == ([MachineError.exit_code] * count + [0], [])


@pytest.mark.nightly
@pytest.mark.parametrize("id", TRAINED)
def test_a_killed_step_ends_as_an_uninterrupted_one(whole: Jobs, killed: Jobs, id: str) -> None:
    index = [each for each, *_ in STEPS].index(id)
    later = len(DEATHS_OF[id]) - DEATHS_OF[id].index(IN_TRAINING) - 1
    same_result(whole, killed, id, index, [SAVED] + [2 * SAVED] * later)

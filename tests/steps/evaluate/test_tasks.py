"""`evaluate.tasks`: scores of the harness, offline, against a plain computation; packed weights and adapters too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contracts.step_kind import Result
from runner.errors import StepFailed
from runner.steps.kinds import find
from tests.host import Host

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

KIND = "evaluate.tasks"
MODEL = Path(__file__).parents[3] / "runner" / "demo" / "models" / "tiny-llama"
TASK = Path(__file__).parents[3] / "runner" / "demo" / "tasks" / "continuation"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def result(folder: Path, checkpoint: Path = MODEL, **params: Any) -> Result:
    return find(KIND).run(Host(folder, KIND, checkpoint, **({"tasks": ["demo:continuation"]} | params)))


def scores(folder: Path, checkpoint: Path = MODEL, **params: Any) -> dict[str, float]:
    return dict(result(folder, checkpoint, **params).metrics)


def plain(count: int) -> list[bool]:
    """Whether the dense model gives the true continuation the highest probability, by hand."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    right = []
    for line in (TASK / "continuation.jsonl").read_text("utf-8").splitlines()[:count]:
        item = json.loads(line)
        sums = []
        for choice in item["choices"]:
            start = len(tokenizer(item["context"])["input_ids"])
            ids = torch.tensor([tokenizer(item["context"] + choice)["input_ids"]])
            with torch.no_grad():
                logs = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
            sums.append(float(logs.gather(1, ids[0, start:, None]).sum()))
        right.append(max(range(4), key=lambda i: sums[i]) == item["gold"])
    return right


def test_the_embedded_task_well_above_chance(tmp_path: Path) -> None:
    found = scores(tmp_path, limit=40)
    assert sorted(found) == [f"continuation/{m}" for m in ("acc", "acc_norm", "acc_norm_stderr", "acc_stderr")]
    assert found["continuation/acc"] == pytest.approx(sum(plain(40)) / 40, abs=0.026)  # one near tie
    assert found["continuation/acc"] > 0.4


@pytest.mark.nightly
def test_part_of_a_task_and_worked_examples(tmp_path: Path) -> None:
    part, count = result(tmp_path / "part", limit=0.1, num_fewshot=1), result(tmp_path / "count", limit=10)
    assert part.metrics["continuation/acc_stderr"] > 0.1  # of ten questions
    assert count.metrics["continuation/acc"] * 10 == pytest.approx(sum(plain(10)))
    assert {name: part.details[name] for name in ("versions", "num_fewshot")} == {
        "versions": {"continuation": 1}, "num_fewshot": {"continuation": 1},
    }  # fmt: skip
    assert count.details["samples"]["continuation/acc"] == [float(right) for right in plain(10)]
    assert sum(part.details["samples"]["continuation/acc_norm"]) / 10 == pytest.approx(
        part.metrics["continuation/acc_norm"]
    )
    assert count.details["num_fewshot"] == {"continuation": 0}


@pytest.mark.nightly
def test_task_files_by_path(tmp_path: Path) -> None:
    """A file and a folder with two, their data beside them, wherever the process runs."""
    folder = tmp_path / "own"
    shutil.copytree(TASK, folder / "inner")
    text = (TASK / "continuation.yaml").read_text()
    (folder / "inner" / "continuation.yaml").write_text(text.replace("task: continuation", "task: first"))
    (folder / "inner" / "other.yaml").write_text(text.replace("task: continuation", "task: second"))
    host = Host(tmp_path / "folder", KIND, MODEL, tasks=[str(folder)], limit=4)
    whole = find(KIND).run(host).metrics
    assert [event["done"] for event in host.events if event["event"] == "progress"] == [0, 1, 2]
    assert {name.partition("/")[0] for name in whole} == {"first", "second"}
    one = scores(tmp_path / "file", tasks=[str(folder / "inner" / "other.yaml")], limit=4)
    assert one == {name: value for name, value in whole.items() if name.startswith("second/")}


@pytest.mark.nightly
def test_packed_weights_and_an_adapter(tmp_path: Path) -> None:
    from tests.tiny import tokens

    ids = tokens(8, 64, 4096)
    packed = Host(tmp_path / "rtn", "quantize.rtn", MODEL, bits=2, group_size=32, symmetric=False)
    find("quantize.rtn").run(packed)
    eora = Host(tmp_path / "eora", "recover.eora", packed.out_dir, ids, others={"against": MODEL}, rank=128)
    find("recover.eora").run(eora)
    found = [scores(tmp_path / str(i), folder, limit=40) for i, folder in enumerate((packed.out_dir, eora.out_dir))]
    assert found[0]["continuation/acc_norm"] < found[1]["continuation/acc_norm"]


@pytest.mark.nightly
def test_a_name_that_the_harness_does_not_have(tmp_path: Path) -> None:
    from importlib.metadata import version

    with pytest.raises(StepFailed) as caught:
        scores(tmp_path, tasks=["helaswag"])
    message = f"lm-evaluation-harness {version('lm-eval')} has no task `helaswag`; did you mean `hellaswag`?"
    assert caught.value.message == message
    assert (
        caught.value.help == "`lm-eval ls tasks` lists every task; a task file is named by its path, which holds a `/`"
    )


def test_names_of_metrics() -> None:
    from runner.steps.evaluate.tasks import metrics

    given = {"a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": "N/A", "match,strict": 1, "x,none": float("nan")}}
    assert metrics(given) == {"a/acc": 0.5, "a/match/strict": 1.0}

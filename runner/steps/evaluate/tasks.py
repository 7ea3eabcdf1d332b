"""Tasks of lm-evaluation-harness, used as a library; the full model is in memory, as the harness decides its calls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.contracts import metric_ranges
from runner.contracts.noise import Noise, rounded
from runner.contracts.step_kind import (
    CHECKPOINT,
    METRICS_ONLY,
    QUANTIZED,
    Context,
    Cost,
    Inputs,
    Params,
    Requirement,
    Result,
)
from runner.data import harness_tasks
from runner.errors import Diagnostic, StepFailed
from runner.model.layerwise import memory_budget
from runner.wording import did_you_mean

VERSION = 3
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = METRICS_ONLY
REQUIRES = (Requirement("lm-eval", "eval"),)
METRICS = {"<task>/<metric>": metric_ranges.UNKNOWN}
_ANSWER = Noise(unit="questions", is_share=True)
NOISE = dict.fromkeys(
    ("<task>/acc", "<task>/acc_norm", "<task>/exact_match", "<task>/exact_match/<filter>"), _ANSWER
)  # fmt: skip

LENGTH = 512  # tokens of a question, for the forecast
QUESTIONS = 1000  # of a task, where nothing limits them
CHOICES = 4
HARNESS = 110 << 20  # bytes that the harness and its packages take in addition to transformers (measured)

Spec = str | dict[str, Any]  # a name of the harness, or a task's configuration


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return no complaints: finding the task files has already checked everything."""
    return []


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost; the number of questions is a guess without `limit`.

    The dense weights and twice the logits of a batch are in memory.
    """
    facts, machine = inputs.checkpoint, inputs.machine
    value = memory_budget.compute_bytes(facts, machine.device)
    weights = sum(i.size for i in facts.sites)
    vocabulary = facts.config.vocabulary_size
    logits = 2 * 4 * params["batch_size"] * LENGTH * vocabulary
    limit = params.get("limit") or 1.0
    questions = limit if limit > 1 else limit * QUESTIONS
    tokens = len(params["tasks"]) * questions * CHOICES * LENGTH / 2
    head = facts.config.hidden_size * vocabulary
    batch = memory_budget.batch_bytes(facts, LENGTH, value, machine.device)
    resident = weights * value + memory_budget.rest_bytes(facts, value) + batch + logits
    return Cost(
        memory_budget.RUNTIME + HARNESS + resident, 0, 1 << 20, 15 + 2 * tokens * (weights + head) / machine.flops
    )


def run(ctx: Context) -> Result:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    folder = ctx.inputs["checkpoint"].path
    local = ctx.files("tasks")
    named = [entry for entry in ctx.params["tasks"] if entry not in local]
    manager = TaskManager(include_path=[str(_folder(path)) for path in local.values()], include_defaults=bool(named))
    _known(named, manager.all_tasks)
    specs = list(_specs(ctx, local))
    harness = HFLM(
        pretrained=_model(ctx), tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=ctx.params["batch_size"]
    )
    seed = ctx.seed % 2**32
    found: dict[str, float] = {}
    answers: dict[str, list[float]] = {}
    versions: dict[str, Any] = {}
    shots: dict[str, Any] = {}
    for done, spec in enumerate(specs):
        ctx.safe_point()
        ctx.emit("progress", phase="tasks", done=done, total=len(specs), unit="tasks")
        results = simple_evaluate(
            harness, tasks=[spec], task_manager=manager, num_fewshot=ctx.params.get("num_fewshot"),
            limit=ctx.params.get("limit"), log_samples=True, bootstrap_iters=100, random_seed=seed,
            numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
        found |= metrics(results["results"])
        answers |= samples(results["samples"])
        versions |= results["versions"]
        shots |= results["n-shot"]
    ctx.emit("progress", phase="tasks", done=len(specs), total=len(specs), unit="tasks")
    return Result(metrics=found, details={"versions": versions, "num_fewshot": shots, "samples": answers})


def metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the harness's {task: {"acc,none": 0.5}} as {"task/acc": 0.5}.

    A filter other than "none" is a third part of the name.
    """
    found = {}
    for task, values in results.items():
        for name, value in values.items():
            metric, comma, filter_ = name.partition(",")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if comma and number and math.isfinite(value):
                found[f"{task}/{metric}" if filter_ == "none" else f"{task}/{metric}/{filter_}"] = float(value)
    return found


def samples(answered: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Return the value of every question, in their order, of the metrics in NOISE: 1 where the answer was right."""
    found: dict[str, list[float]] = {}
    for task, entries in answered.items():
        for name in sorted({entry["filter"] for entry in entries}):
            own = sorted(
                (entry for entry in entries if entry["filter"] == name), key=lambda entry: int(entry["doc_id"])
            )
            for metric in ("acc", "acc_norm", "exact_match"):
                if all(metric in entry for entry in own):
                    label = f"{task}/{metric}" if name == "none" else f"{task}/{metric}/{name}"
                    found[label] = rounded(float(entry[metric]) for entry in own)
    return found


def _model(ctx: Context) -> Any:
    """Return the checkpoint as a dense model of transformers, packed weights unpacked and the adapter applied."""
    from transformers import GenerationConfig

    from runner.model.layerwise.streamed_model import StreamedModel
    from runner.model.layerwise.whole_model import load_streamed

    folder = ctx.inputs["checkpoint"].path
    model = load_streamed(StreamedModel(folder, ctx.device))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _known(names: list[str], known: list[str]) -> None:
    """Raise StepFailed for a name that the harness does not have."""
    from importlib.metadata import version

    unknown = [f"`{name}`{did_you_mean(name, known)}" for name in names if name not in known]
    if unknown:
        raise StepFailed(
            f"lm-evaluation-harness {version('lm-eval')} has no task {', '.join(unknown)}",
            "`lm-eval ls tasks` lists every task; a task file is named by its path, which holds a `/`",
        )


def _specs(ctx: Context, local: Mapping[str, Path]) -> Iterator[Spec]:
    """Yield every task in the order of `tasks`.

    Tasks of files have absolute paths and a dataset cache of their own.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    for entry in ctx.params["tasks"]:
        if entry not in local:
            yield entry
            continue
        for file in harness_tasks.definitions(local[entry]).values():
            config = load_yaml(file)
            given = dict(config.get("dataset_kwargs") or {})
            if "data_files" in given:
                given["data_files"] = _absolute(given["data_files"], file.parent)
            cache = str(ctx.scratch_dir / "datasets")
            yield {**config, "dataset_kwargs": {"cache_dir": cache, **given}}


def _absolute(files: Any, folder: Path) -> Any:
    """Return `data_files` of a task with the paths that exist in the folder of the task file made absolute."""
    if isinstance(files, Mapping):
        return {key: _absolute(value, folder) for key, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, folder) for value in files]
    return str(folder / files) if (folder / files).exists() else files


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent

"""One model type through perplexity, rounding, GPTQ and pruning, each compared with what transformers makes of it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import DataFacts, Inputs, MachineFacts
from runner.errors import RecipeError, RunnerError
from runner.model.architecture import inspect, supported
from runner.model.checkpoint.headers import model_config
from runner.plan.resolve_inputs import described
from runner.recipe.schema.load import defaults
from runner.steps import architectures, kinds
from tests import model_types
from tests.host import Host

PERPLEXITY = "evaluate.perplexity"
STEPS: Mapping[str, Mapping[str, Any]] = {
    "quantize.rtn": {"bits": 4, "group_size": 8},
    "quantize.gptq": {"bits": 4, "group_size": 8},
    "prune.wanda": {"sparsity": 0.5},
}
RIGHT = "right"
# How far a perplexity may be from transformers' in float32: before and after compression.
_TOLERANCES = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (5e-3, 5e-3)}
MACHINE = MachineFacts(2, 24 << 30, 20 << 30, "cpu", 0, None, 1e11, 5e8)
IDS = torch.randint(4, 120, (72, 24), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Outcome:
    """What became of a model type. `results`: kind of step → RIGHT, a refusal, or what is wrong.

    no_model  why there is no tiny model of it
    wrong     whether anything but RIGHT and refusals is among the results
    """

    results: Mapping[str, str] = field(default_factory=dict)
    no_model: str = ""
    wrong: bool = False


def sweep(
    model_type: str, folder: Path, changes: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> Outcome:
    """Run every step on a random tiny model of a type, whose configuration has `changes`."""
    try:
        torch.manual_seed(0)
        config = model_types.config(model_type, changes)
        model = getattr(transformers, supported.auto_class(model_type)).from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
        model.to(dtype).save_pretrained(folder / "model")
    except Exception as error:  # noqa: BLE001  these sizes do not fit every type
        return Outcome(no_model=f"{type(error).__name__}: {_line(error)}")
    try:
        dense = perplexity(folder / "model")
    except Exception as error:  # noqa: BLE001  what is computed of text alone that transformers does not?
        return _without_reference(folder, f"{type(error).__name__}: {_line(error)}")
    results: dict[str, str] = {}
    wrong = False
    for kind, params in {PERPLEXITY: {}, **STEPS}.items():
        try:
            results[kind] = _tried(kind, params, folder, dense, *_TOLERANCES[dtype])
        except RunnerError as error:
            results[kind] = _line(error).replace(f"{folder / 'model'}", "model")
        except Exception as error:  # noqa: BLE001  a crash is a result
            results[kind] = f"{type(error).__name__}: {_line(error)}\n{traceback.format_exc()}"
            wrong = True
        wrong = wrong or results[kind].startswith("wrong:")
        if results[kind] != RIGHT and kind == PERPLEXITY:
            break
    return Outcome(results, wrong=wrong)


def _without_reference(folder: Path, reason: str) -> Outcome:
    """The refusal of a model that transformers does not run on text alone, or that it is not refused."""
    try:
        run(PERPLEXITY, folder / "model", folder / "dense", IDS)
    except RunnerError as error:
        return Outcome({PERPLEXITY: _line(error).replace(f"{folder / 'model'}", "model")})
    except Exception as error:  # noqa: BLE001  a crash is a result
        return Outcome({PERPLEXITY: f"{type(error).__name__}: {_line(error)}\n{traceback.format_exc()}"}, wrong=True)
    return Outcome({PERPLEXITY: f"wrong: it is measured, and transformers ends in {reason}"}, wrong=True)


def _tried(kind: str, params: Mapping[str, Any], folder: Path, dense: float, before: float, after: float) -> str:
    """RIGHT, or what differs from transformers: more than `before`, or `after` compression."""
    if kind == PERPLEXITY:
        streamed = run(kind, folder / "model", folder / "dense", IDS).metrics["perplexity"]
        return RIGHT if abs(streamed / dense - 1) < before else f"wrong: {streamed:.4f}, transformers has {dense:.4f}"
    host = folder / kind
    run(kind, folder / "model", host, None if kind == "quantize.rtn" else IDS[:24], **params)
    changed = _changed(folder / "model", host / "out")
    if changed and kind.startswith("quantize."):
        return f"wrong: {changed[0]} is not packed and not what it was"
    streamed = run(PERPLEXITY, host / "out", folder / f"{kind}-perplexity", IDS).metrics["perplexity"]
    loaded = perplexity(host / "out")
    if not abs(streamed / loaded - 1) < after:
        return f"wrong: {streamed:.4f}, transformers has {loaded:.4f}"
    return RIGHT if abs(loaded / dense - 1) > 1e-9 else "wrong: nothing changed"


def _changed(before: Path, after: Path) -> list[str]:
    """The tensors of two checkpoints that have one name and other bytes."""
    one, other = ({n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
                  for folder in (before, after))  # fmt: skip
    return sorted(name for name in one if name in other and not torch.equal(_octets(one[name]), _octets(other[name])))


def _octets(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def run(kind: str, model: Path, folder: Path, ids: torch.Tensor | None, **params: Any) -> Any:
    """Plan and run one step on a checkpoint. RecipeError where the plan refuses it."""
    facts = described(inspect.facts(model, "model"), model)
    named = {"data": "calibration"} if ids is not None else {}
    data = {"data": DataFacts("calibration", len(IDS), IDS.shape[1], IDS.nbytes, "0" * 64)}
    refuse(kind, facts, Inputs(facts, {}, data, MACHINE), {**named, **params})
    host = Host(folder, kind, model, ids, **params)
    known = replace(host.inputs["checkpoint"], sites=tuple(site.name for site in facts.sites), linears=facts.linears)
    host.inputs = {"checkpoint": known}
    return kinds.find(kind).run(host)


def refuse(kind: str, facts: CheckpointFacts, inputs: Inputs, params: Mapping[str, Any]) -> None:
    unsupported = architectures.refuse(kind, facts)
    found = [unsupported] if unsupported else kinds.find(kind).check(defaults(kind, params), inputs)
    errors = [each for each in found if each.severity == "error"]
    if errors:
        raise RecipeError(errors)


def perplexity(folder: Path) -> float:
    """The perplexity of IDS by transformers' own forward in float32."""
    loads = getattr(transformers, supported.auto_class(model_config(folder).model_type))
    model = loads.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.use_cache = False  # that of xlstm has the sizes of the values for keys, too
    total = 0.0
    with torch.no_grad():
        for ids in IDS.split(24):
            logits = model(input_ids=ids).logits.float()[:, :-1].flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / (IDS.numel() - len(IDS)))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]

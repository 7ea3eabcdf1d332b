"""The check of `serve`: which of the servers that a recipe names load each of its artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.model.checkpoint import adapter_loading, loading, servers
from runner.model.checkpoint.servers import REFUSED, UNKNOWN, Verdict
from runner.recipe.types import Recipe

GPU = "gpu"
# The engine that a server runs, and the kind that makes it; the others load checkpoints.
_ENGINES = {"onnxruntime": ("onnx", "build.onnx"), "llama.cpp": ("gguf", "build.gguf")}


@dataclass(frozen=True)
class Served:
    """How a server loads the result of a step."""

    step: str
    verdict: Verdict


def judge(recipe: Recipe, results: Mapping[str, CheckpointFacts]) -> tuple[Served, ...]:
    """Return how each server of `serve` loads each artifact. `results` has the facts of those by step, in order."""
    device = servers.GPUS[recipe.serve[GPU]] if GPU in recipe.serve else None
    return tuple(
        Served(step, _verdict(server, recipe.serve[server], facts, device))
        for step, facts in results.items()
        for server in _named(recipe)
    )


def check(recipe: Recipe, results: Mapping[str, CheckpointFacts], served: Iterable[Served]) -> list[Diagnostic]:
    """Return complaints about servers that cannot load the result, and warnings about those of which nothing is known.

    The result for a server is the last artifact of the sort that it loads: a checkpoint, or an engine of its own.
    """
    verdicts = {(each.step, each.verdict.server): each.verdict for each in served}
    found = []
    for server in _named(recipe):
        span = recipe.span(("serve", server))
        wanted, kind = _ENGINES.get(server, (None, ""))
        fitting = [step for step, facts in results.items() if (facts.engine or {}).get("format") == wanted]
        if not fitting:
            message = f"`serve` names {server}, and no step makes what it loads"
            help = f"add a step of `{kind}`, or leave {server} out" if kind else f"leave {server} out"
            found.append(Diagnostic("R655", message, help, span))
            continue
        verdict = verdicts[fitting[-1], server]
        clause = f"the result of `{fitting[-1]}`: {verdict.why}"
        where = f"{server}{f' on {recipe.serve[GPU]}' if GPU in recipe.serve else ''}"
        if verdict.how == REFUSED:
            message = f"`serve` names {where}, which cannot load {clause}"
            remedy = _remedy(server, results[fitting[-1]])
            found.append(Diagnostic("R655", message, f"{remedy}, or leave the server out", span))
        elif verdict.how == UNKNOWN:
            message = f"nothing is known of whether {where} loads {clause}"
            found.append(Diagnostic("R656", message, "try it, or choose a scheme that docs/serving.md lists", span,
                                    severity="warning"))  # fmt: skip
    return found


def _remedy(server: str, facts: CheckpointFacts) -> str:
    """Return what to do about a result that a server cannot load: about its adapter, or about its weights."""
    adapter = facts.adapter if facts.engine is None else None
    if adapter is not None and adapter_loading.verdict(server, adapter).how == REFUSED:
        return adapter_loading.REMEDY
    return "choose another scheme or format (docs/serving.md has the table)"


def _named(recipe: Recipe) -> list[str]:
    return [server for server in servers.SERVERS if server in recipe.serve]


def _verdict(server: str, version: str, facts: CheckpointFacts, device: float | None) -> Verdict:
    if not servers.is_covered(server, version):
        oldest = ".".join(map(str, servers.OLDEST[server]))
        return Verdict(server, UNKNOWN, f"the table is about {server} {oldest} and later; `serve` allows {version}")
    return loading.verdict(server, facts, device)

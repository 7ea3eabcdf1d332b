"""The layer stream as steps run it: turns parameters and Context into the arguments of runner.model.layerwise.

Imported inside functions only: it loads torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.contracts import mixtures
from runner.contracts.context import Artifact, Context, Params, Result, Samples
from runner.contracts.facts import CheckpointFacts
from runner.contracts.model_description import Linears
from runner.errors import GateFailed
from runner.model.architecture.inspect import of_artifact
from runner.model.checkpoint.headers import weights_nbytes
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.writer import parse_size
from runner.model.layerwise import engine
from runner.model.layerwise.method import Method, Results
from runner.model.layerwise.output import Output, Storage
from runner.model.layerwise.stream_run import StreamHooks, StreamInputs, StreamRun
from runner.steps import model_card
from runner.steps.layer_method import LAYER_ERROR, LayerMethod
from runner.steps.stream_cost import compared_every
from runner.steps.targets import chosen, planned

if TYPE_CHECKING:
    import torch


def hooks(ctx: Context) -> StreamHooks:
    """Return the hooks of a step. A gate on `layer_error` ends it with GateFailed at the first layer that misses it."""

    def judge(layer: int, layers: int, error: float | None) -> None:
        limit = ctx.limits.get(LAYER_ERROR)
        if limit is None or error is None or error <= limit:  # not of NaN
            return
        ctx.emit(
            "gate", id=ctx.step.id, metric=LAYER_ERROR, value=error, limit=limit, passed=False,
            rule=f"at most {limit:g}",
            text=f"`{LAYER_ERROR}` is {error:.4g} in layer {layer}, above its limit {limit:g}",
        )  # fmt: skip
        raise GateFailed(
            f"stopped after layer {layer} of {layers}, which misses the gate on `{LAYER_ERROR}`",
            "raise the limit, and the step goes on after that layer; or change the step so that it loses less there",
        )

    return StreamHooks(ctx.emit, ctx.safe_point, judge)


def stream_run(ctx: Context) -> StreamRun:
    """Return the one pass of a step, with its progress in the file that `runner plan` reads."""
    return StreamRun(ctx.scratch_dir, ctx.out_dir.parent / "progress.json", hooks(ctx))


def resolved(method: LayerMethod, params: Params, facts: CheckpointFacts, seed: int = 0) -> Method:
    """Return the method on one checkpoint, with the options of every module.

    `ignore`, `overrides` and `per_layer` become those options. `seed` decides what a method draws.
    """
    stored = planned(params, facts)
    blocks = any(isinstance(own.scheme.group_size, tuple) for own in stored.values())
    fused = {site.name: site.fused_with for site in facts.sites}
    options = {linear.name: own for linear, own in chosen(params, facts).items()}
    step = method.block
    return Method(
        transform=method.transform,
        options=options,
        statistics=method.wants(params),
        stacked=method.stacked and not blocks,  # a block would reach over two modules
        compared_every=compared_every(params),
        sequential=bool(params.get("true_sequential", True)),
        shares_scale={name: fused[name] for name, own in stored.items() if own.scheme.weights.two_level},
        experts=str(params.get("experts", "routed")),
        least_tokens=int(params.get("expert_min_tokens", 0)),
        fallback=method.fallback,
        block=None if step is None else lambda block, changed: step(block, changed, options, seed),
    )


@dataclass(frozen=True)
class Compression:
    """A layer-wise method with the parameters and the calibration data of one step.

    calibration   [windows, length] that compression.json records, windows None for all of the data
    options       the params of every module, where they are not those of the step alone
    processes     how many share the calibration data
    images        the calibration data with its images, where it has any
    """

    kind: str
    method: LayerMethod
    params: Params
    ids: torch.Tensor | None
    calibration: list[int | None] | None
    options: Mapping[str, Params] | None = None
    processes: int = 1
    images: Samples | None = None

    def storage(self, facts: CheckpointFacts, linears: Linears | None) -> Storage:
        """Return how the weights will be stored.

        Everything but the name of the data is recorded for a step that quantizes again.
        """
        own = {key: value for key, value in self.params.items() if key != "data"}
        return Storage(
            stored=planned(self.params, facts),
            changes=frozenset(linear.name for linear in chosen(self.params, facts)),
            act_order=bool(self.params.get("act_order", False)),
            linears=linears,
            compression={"kind": self.kind, "params": own, "calibration": self.calibration},
        )


def compression(ctx: Context, method: LayerMethod, params: Params | None = None) -> Compression:
    """Return the method of the step of `ctx`, with its parameters, or those given, and calibration data."""
    params = ctx.params if params is None else params
    ids, images = None, None
    if method.wants(params) != "none" or method.block is not None:
        ids, images = calibration_windows(ctx)
    calibration: list[int | None] | None = None
    if params.get("data") is not None:
        data = ctx.data_facts("data")
        calibration = [data.samples, data.sequence_length]
    return Compression(method.kind, method, params, ids, calibration, processes=ctx.processes, images=images)


def calibration_windows(ctx: Context) -> tuple[torch.Tensor, Samples | None]:
    """Return the token ids [windows, length] of the calibration data, and its samples where they have images."""
    images = ctx.images("data")
    return (ctx.data("data"), None) if images is None else (images.ids, images)


def compress(checkpoint: Artifact, how: Compression, run: StreamRun, ctx: Context) -> Result:
    """Apply `how` to a checkpoint, write the result to the step's folder, and return its metrics. Repeatable."""
    folder = checkpoint.path
    facts = of_artifact(checkpoint)
    with CheckpointReader(folder) as reader:
        output = Output(reader, facts, how.storage(facts, checkpoint.linears), run.scratch / "parts")
        inputs = StreamInputs(folder, facts, ctx.device, how.ids, processes=how.processes, images=how.images)
        method = resolved(how.method, how.params, facts, ctx.seed)
        if how.options is not None:
            method = replace(method, options=how.options)
        results = engine.transform(inputs, method, output.layer, run, output.expert)
        size = parse_size(how.params["max_shard_size"])
        account = output.finish(results, ctx.out_dir, size, model_card.render(ctx, results))
    weights = {site.name: site.size for site in facts.sites}
    return replace(summary(ctx.out_dir, results, weights), account=account)


def summary(out: Path, results: Results, weights: Mapping[str, int] | None = None) -> Result:
    """Return the metrics of a step: the mean of every metric over modules, the largest error of a layer, and the bytes

    in `out`. `weights`, how many each module has, make "sparsity" the share of all of them.
    """
    modules = [m for layer in results for m in layer["modules"].values()]
    keys = sorted({k for m in modules for k, v in m.items() if isinstance(v, float)})
    metrics: dict[str, Any] = {k: sum(m[k] for m in modules if k in m) / sum(k in m for m in modules) for k in keys}
    if weights is not None and "sparsity" in metrics:
        zeros = {name: m["sparsity"] for layer in results for name, m in layer["modules"].items() if "sparsity" in m}
        total = sum(weights[name] for name in zeros)
        metrics["sparsity"] = sum(share * weights[name] for name, share in zeros.items()) / total
    errors = [error for layer in results if (error := engine.layer_error(layer)) is not None]
    if errors:
        metrics[LAYER_ERROR] = math.nan if any(map(math.isnan, errors)) else max(errors)
    metrics["bytes"] = weights_nbytes(out)
    metrics["modules"] = len(modules)
    return Result(metrics=metrics | mixtures.counts(results), details={"layers": results})

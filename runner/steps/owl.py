"""OWL (Yin et al. 2023, arXiv:2310.05175): less sparsity in decoder layers with more outliers. Imports no torch.

The score of a weight is |W_ij| · ‖X_j‖₂; those above `owl_threshold` times the mean of their matrix are outliers. With
D_l the share of outliers among the weights of layer l, and S the sparsity asked for, layer l gets

    S_l = S − 2 λ ((D_l − min D) / (max D − min D) − mean of these over the layers)

so that the mean over layers is S. λ is `owl_range`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from runner.contracts.context import Context, Result
from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import Cost, Inputs, Params
from runner.errors import Diagnostic
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps import layerwise
from runner.steps.assignment import is_auto
from runner.steps.layer_method import LayerMethod
from runner.steps.layerwise import Bound
from runner.steps.stream_cost import active_weights
from runner.steps.targets import chosen

UNIFORM = "uniform"


def bind(method: LayerMethod) -> Bound:
    """Return the functions `check, estimate, outcome, run` of a kind that prunes, with its parameter `allocation`."""
    check_modules, estimate, outcome, _ = layerwise.bind(method)

    def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
        return check_modules(params, inputs) + refuse(params, inputs.checkpoint)

    def estimate_both(params: Params, inputs: Inputs) -> Cost:
        return with_measuring(estimate(params, inputs), params, inputs)

    return check, estimate_both, outcome, partial(run, method)


def run(method: LayerMethod, ctx: Context) -> Result:
    """Prune with the sparsities that `allocation` gives the layers."""
    if ctx.params["allocation"] == UNIFORM:
        return layerwise.run(method, ctx)
    from runner.model.architecture.inspect import of_artifact
    from runner.steps import layer_stream as stream

    checkpoint = ctx.inputs["checkpoint"]
    how = replace(stream.compression(ctx, method), options=options(ctx, of_artifact(checkpoint)))
    return stream.compress(checkpoint, how, stream.stream_run(ctx), ctx)


def refuse(params: Params, facts: CheckpointFacts) -> list[Diagnostic]:
    """Return complaints about an allocation that the model, the sparsity or other parameters contradict."""
    if params["allocation"] == UNIFORM:
        return []
    if is_auto(params):
        message = "`sparsity: auto` and `allocation: owl` both decide the sparsity of layers"
        return [Diagnostic("R633", message, "leave one of them out", path=("allocation",))]
    found = []
    if facts.linears.mixtures:
        message = "`allocation: owl` does not measure the experts of a mixture"
        found.append(Diagnostic("R633", message, "use `allocation: uniform`", path=("allocation",)))
    sparsity, spread = params["sparsity"], params["owl_range"]
    if not 2 * spread <= sparsity < 1 - 2 * spread:
        message = f"`allocation: owl` may move the `sparsity` {sparsity} of a layer by {2 * spread:g}, beyond 0 or 1"
        found.append(Diagnostic("R633", message, "use a smaller `owl_range`", path=("owl_range",)))
    if params.get("per_layer"):
        message = "`per_layer` and `allocation: owl` both decide the sparsity of layers"
        found.append(Diagnostic("R633", message, "leave one of them out", path=("per_layer",)))
    return found


def with_measuring(cost: Cost, params: Params, inputs: Inputs) -> Cost:
    """Return the cost of a step with the pass over the model that finds outliers."""
    if params["allocation"] == UNIFORM:
        return cost
    forward = 2 * inputs.data["data"].tokens * active_weights(inputs.checkpoint) / inputs.machine.flops
    return replace(cost, seconds=cost.seconds + forward)


def sparsities(shares: Sequence[float], sparsity: float, spread: float) -> list[float]:
    """Return S_l of every layer from D_l, S and λ."""
    low, high = min(shares), max(shares)
    scaled = [(share - low) / (high - low) if high > low else 0.0 for share in shares]
    middle = sum(scaled) / len(scaled)
    return [sparsity - 2 * spread * (each - middle) for each in scaled]


def options(ctx: Context, facts: CheckpointFacts) -> dict[str, dict[str, Any]]:
    """Return the params of every module that a step of `ctx` prunes, with the sparsity of its layer.

    Measures the outliers of the dense model in a pass of its own, which an interrupted step does not repeat.
    """
    found = {site: dict(own) for site, own in chosen(ctx.params, facts).items()}
    sizes = {site.name: site.size for site in found}
    measured = _measure(ctx, facts, {site.name: own for site, own in found.items()})
    layers = [layer for layer in sorted(measured) if measured[layer]]
    shares = []
    for layer in layers:
        outliers = sum(sizes[name] * share for name, share in measured[layer].items())
        shares.append(outliers / sum(sizes[name] for name in measured[layer]))
    wanted = dict(zip(layers, sparsities(shares, ctx.params["sparsity"], ctx.params["owl_range"]), strict=True))
    return {site.name: {**own, "sparsity": wanted[site.layer]} for site, own in found.items()}


def outlier_share(linear: Linear, statistics: Statistics, params: Mapping[str, Any]) -> Transformed:
    """Return a weight as it is, and as metric the share of its scores above `owl_threshold` times their mean."""
    from runner.methods.pruning_masks import wanda_scores

    scores = wanda_scores(linear.weight, statistics.of("input_norms"))
    outliers = int((scores > params["owl_threshold"] * scores.mean()).sum())
    return Transformed(weight=linear.weight, metrics={"outliers": outliers / scores.numel()})


def _measure(
    ctx: Context, facts: CheckpointFacts, options: Mapping[str, Mapping[str, Any]]
) -> dict[int, dict[str, float]]:
    """Return the share of outliers of every module, by layer and name."""
    from runner.model.layerwise import engine
    from runner.model.layerwise.method import Method
    from runner.model.layerwise.stream_run import StreamInputs, StreamRun
    from runner.steps import layer_stream

    folder = ctx.scratch_dir / "outliers"
    folder.mkdir(exist_ok=True)
    method = Method(outlier_share, options, statistics="input_norms")
    source = ctx.inputs["checkpoint"].path
    ids, images = layer_stream.calibration_windows(ctx)
    inputs = StreamInputs(source, facts, ctx.device, ids, processes=ctx.processes, images=images)
    run = StreamRun(folder, folder / "progress.json", replace(layer_stream.hooks(ctx), emit=_no_event))

    def note(index: int, changed: Mapping[str, Transformed]) -> dict[str, Any]:
        return {"layer": index, "modules": {name: dict(done.metrics) for name, done in changed.items()}}

    results = engine.transform(inputs, method, note, run)
    return {
        layer["layer"]: {name: float(module["outliers"]) for name, module in layer["modules"].items()}
        for layer in results
    }


def _no_event(event: str, **fields: Any) -> None:
    """Say nothing: the layers of this pass are not those of the step."""

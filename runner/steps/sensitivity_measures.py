"""The measurements of `analyze.sensitivity`, in the worker. Imported inside functions only: it loads torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from runner.contracts.context import Context, Params, Result
from runner.contracts.facts import CheckpointFacts
from runner.contracts.sensitivity import FILE, Group, Sensitivity, SiteFacts, SiteInputs
from runner.contracts.sites import Site
from runner.methods import pruning_masks, site_errors, sparsegpt
from runner.methods.gptq import factorize, quantize_weight
from runner.methods.quantization_grid import make_grid, quantize_rtn
from runner.methods.quantization_scheme import stored_levels
from runner.model.architecture.inspect import of_artifact
from runner.model.checkpoint.companions import write_json
from runner.model.layerwise import engine, progress_file
from runner.model.layerwise.changed_model import ChangedModel
from runner.model.layerwise.method import Linear, Method, Statistics, Transformed
from runner.model.layerwise.stream_run import StreamInputs, StreamRun
from runner.steps import layer_stream
from runner.steps.site_groups import groups
from runner.steps.targets import chosen, stored_scheme
from runner.system import heap

Modules = Mapping[str, Mapping[str, Any]]  # site → what the stream measured of it
UNITS = {"output_error": "relative squared error", "gradient": "nats per token", "kl": "nats per token"}
_DAMPENING = 0.01  # of GPTQ, as its schema has it
_ERROR, _LOSS = "error/", "loss/"


@dataclass(frozen=True)
class SiteMeasure:
    """How sites are measured on the stream.

    candidates  name → params of the scheme
    params      of the step
    gradients   site → γ float64 [out]; empty where no loss is forecast from gradients
    keep        the folder that gets the rounded weights of each candidate; None: they are not needed
    """

    candidates: Mapping[str, Params]
    params: Params
    gradients: Mapping[str, torch.Tensor]
    keep: Path | None = None


def run(ctx: Context, candidates: Mapping[str, Params]) -> Result:
    """Measure, write the artifact and return the sums of losses as metrics."""
    checkpoint, ids = ctx.inputs["checkpoint"], ctx.data("data")
    facts = of_artifact(checkpoint)
    measure = str(ctx.params["measure"])
    sites = list(chosen(ctx.params, facts))
    gradients = _gradients(ctx, sites, ids) if measure == "gradient" else {}
    keep = ctx.scratch_dir / "rounded" if measure == "kl" else None
    modules = _stream(ctx, facts, ids, SiteMeasure(candidates, ctx.params, gradients, keep))
    fused = not ctx.params["sparsities"]
    grouped = [tuple(site for site in group if site.name in modules) for group in groups(sites, fused=fused)]
    losses = [_forecast(group, modules, tuple(candidates), measure) for group in grouped]
    if keep is not None:
        losses = _divergences(ctx, grouped, ids, tuple(candidates), keep)
    found = Sensitivity(
        measure, UNITS[measure], candidates,
        tuple(
            Group({site.name: _site(site, modules[site.name], candidates) for site in group}, group[0].layer, own)
            for group, own in zip(grouped, losses, strict=True)
        ),
        {"windows": ids.shape[0], "sequence_length": ids.shape[1]},
    )  # fmt: skip
    write_json(ctx.out_dir / FILE, found.to_json())
    metrics: dict[str, float] = {"groups": len(found.groups)}
    metrics |= {f"loss/{name}": sum(group.losses[name] for group in found.groups) for name in candidates}
    return Result(metrics=metrics, details={"sensitivity": found.to_json()})


def measure_site(how: SiteMeasure, linear: Linear, statistics: Statistics, params: Params) -> Transformed:
    """Return the weight as it is, with the errors that each candidate leaves as metrics."""
    hessian, (name,) = statistics.hessian, linear.names
    metrics: dict[str, float] = {}
    rounded = _changed(how, linear, hessian)
    for candidate, weight in rounded.items():
        change = weight.float() - linear.weight
        metrics[f"{_ERROR}{candidate}"] = site_errors.relative_error(change, linear.weight, hessian)
        if name in how.gradients and hessian is not None:
            forecast = site_errors.forecast_divergence(change, hessian, how.gradients[name].to(hessian.device))
            metrics[f"{_LOSS}{candidate}"] = forecast
    if how.keep is not None:
        _keep(how.keep / f"{name}.safetensors", rounded)
    if hessian is not None:
        norms = hessian.diagonal().clamp_min(0).sqrt()
        metrics |= {
            "tokens": float(statistics.tokens),  # of an expert the stream replaces it by those routed to it
            "outliers": site_errors.outliers(norms),
            "effective_columns": site_errors.effective_columns(hessian),
        }
    return Transformed(weight=linear.weight, metrics=metrics)


def _changed(how: SiteMeasure, linear: Linear, hessian: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the weight [out, in] that each candidate stores, in the type that the checkpoint has."""
    return _pruned(how, linear, hessian) if how.params["sparsities"] else _rounded(how, linear, hessian)


def _pruned(how: SiteMeasure, linear: Linear, hessian: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the weight with the zeros of each sparsity: by magnitude where there is no second moment."""
    factor = norms = None
    if hessian is not None and how.params["solver"] == "gptq":
        factor = factorize(hessian, dampening_fraction=_DAMPENING, act_order=False)
    elif hessian is not None:
        norms = hessian.diagonal().clamp_min(0).sqrt()

    def pruned(sparsity: float, pattern: str) -> torch.Tensor:
        if factor is not None:
            return sparsegpt.prune(linear.weight, factor, sparsity, pattern).weight
        if norms is not None:
            keep = pruning_masks.wanda_mask(linear.weight, norms, sparsity, pattern)
        else:
            keep = pruning_masks.magnitude_mask(linear.weight, sparsity, pattern)
        return linear.weight.masked_fill(~keep, 0.0)

    return {
        candidate: pruned(float(own["sparsity"]), str(own["pattern"])).to(linear.dtype)
        for candidate, own in how.candidates.items()
    }


def _rounded(how: SiteMeasure, linear: Linear, hessian: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the rounded weight of each number of bits."""
    found = {}
    grid = str(how.params["grid"])
    if hessian is None and grid == "weighted_mse":
        grid = "mse"
    factor = None
    if hessian is not None and how.params["solver"] == "gptq":
        factor = factorize(hessian, dampening_fraction=_DAMPENING, act_order=True)
    for candidate, own in how.candidates.items():
        levels = stored_levels(stored_scheme(own), str(own["format"]), linear.dtype)
        if factor is not None:
            points = make_grid(linear.weight, levels, grid, factor.importance(), linear.largest)
            quantized = quantize_weight(linear.weight, factor, points, keep_zeros=True).quantized
        else:
            importance = hessian.diagonal() if hessian is not None else None
            quantized = quantize_rtn(linear.weight, levels, grid, importance, linear.largest)
        found[candidate] = quantized.dequantize(linear.dtype)
    return found


def _keep(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write weights so that they outlive a killed process, and the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(save({name: weight.cpu().contiguous() for name, weight in weights.items()}))
        file.flush()
        os.fsync(file.fileno())


def _stream(ctx: Context, facts: CheckpointFacts, ids: torch.Tensor, how: SiteMeasure) -> Modules:
    """Return what is measured of every site, a layer in memory at a time."""
    last = how.keep is None
    folder = ctx.scratch_dir / "stream"
    folder.mkdir(exist_ok=True)
    progress = ctx.out_dir.parent / "progress.json" if last else folder / "progress.json"
    run = StreamRun(folder, progress, layer_stream.hooks(ctx), after=0 if last else facts.layer_count)
    options = {site.name: own for site, own in chosen(ctx.params, facts).items()}
    transform = partial(measure_site, how)
    method = Method(
        transform, options, statistics="hessian",
        sequential=bool(facts.linears.mixtures),  # experts are seen one after another
        experts=str(ctx.params["experts"]),
        least_tokens=int(ctx.params["expert_min_tokens"]),
        fallback=transform,
    )  # fmt: skip
    experts: dict[str, Any] = {}

    def expert(index: int, changed: Mapping[str, Transformed]) -> None:
        experts.update({name: dict(done.metrics) for name, done in changed.items()})

    def note(index: int, changed: Mapping[str, Transformed]) -> dict[str, Any]:
        modules = {**experts, **{name: dict(done.metrics) for name, done in changed.items()}}
        experts.clear()
        return {"layer": index, "modules": modules}

    inputs = StreamInputs(ctx.inputs["checkpoint"].path, facts, ctx.device, ids)
    results = engine.transform(inputs, method, note, run, expert)
    return {name: module for layer in results for name, module in layer["modules"].items()}


def _gradients(ctx: Context, sites: list[Site], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return γ of every site; an interrupted step does not compute it again."""
    path = ctx.scratch_dir / "gradients.safetensors"
    if not path.exists():
        model = ChangedModel(ctx.inputs["checkpoint"].path, ctx.device, ids, ctx.scratch_dir / "gradients")

        def done(window: int) -> None:
            ctx.safe_point()
            ctx.emit("progress", phase="gradients", done=window, total=len(ids), unit="windows")

        found = model.output_gradients([site.name for site in sites], ctx.seed, done)
        temporary = path.with_suffix(".new")
        _keep(temporary, found)
        temporary.replace(path)
        del model
        heap.trim()
    return load_file(path)


def _divergences(
    ctx: Context, grouped: list[tuple[Site, ...]], ids: torch.Tensor, candidates: tuple[str, ...], keep: Path
) -> list[dict[str, float]]:
    """Return the divergence of the model with each group as each candidate stores it; resumes at each layer."""
    model = ChangedModel(ctx.inputs["checkpoint"].path, ctx.device, ids, ctx.scratch_dir / "model")
    layers = len(model.streamed)
    path = ctx.out_dir.parent / "progress.json"
    progress = progress_file.load(path, layers)
    for layer in range(progress.layer, layers):
        found = []
        for group in grouped:
            if group[0].layer != layer:
                continue
            rounded = {site.name: load_file(keep / f"{site.name}.safetensors") for site in group}
            own = {}
            for candidate in candidates:
                ctx.safe_point()
                own[candidate] = model.divergence(layer, {name: of[candidate] for name, of in rounded.items()})
            found.append([group[0].name, own])
        progress.results.append({"layer": layer, "losses": found})
        progress.layer = layer + 1
        progress.save(path)
        ctx.emit("layer", layer=layers + layer + 1, layers=2 * layers, seconds=0.0, error=None)
    by_first = {name: own for result in progress.results for name, own in result["losses"]}
    return [by_first[group[0].name] for group in grouped]


def _forecast(group: tuple[Site, ...], modules: Modules, candidates: tuple[str, ...], measure: str) -> dict[str, float]:
    """Return the loss of a group as the sum over its sites; over experts, the mean by the tokens that reach them."""
    key = _LOSS if measure == "gradient" else _ERROR
    if not group[0].is_expert:
        return {name: sum(float(modules[site.name][f"{key}{name}"]) for site in group) for name in candidates}
    roles = {role: [site for site in group if site.role == role] for role in sorted({site.role for site in group})}
    found = {}
    for name in candidates:
        found[name] = 0.0
        for sites in roles.values():
            tokens = [float(modules[site.name].get("tokens", 0)) for site in sites]
            shares = tokens if any(tokens) else [1.0] * len(sites)
            errors = (float(modules[site.name][f"{key}{name}"]) for site in sites)
            found[name] += sum(share * error for share, error in zip(shares, errors, strict=True)) / sum(shares)
    return found


def _site(site: Site, measured: Mapping[str, Any], candidates: Iterable[str]) -> SiteFacts:
    errors = {name: float(measured[f"{_ERROR}{name}"]) for name in candidates}
    inputs = None
    if "outliers" in measured:
        inputs = SiteInputs(float(measured["outliers"]), float(measured["effective_columns"]), site.columns)
    return SiteFacts(site.size, int(measured["tokens"]), errors, inputs)

"""AWQ (Lin et al. 2024): channels are scaled so that rounding the weights of a given scheme errs least.

The maths is in runner/methods/channel_scales.py and weight_clipping.py; where scales can move is found on the model
itself (runner/model/layerwise/channel_scalings.py). The scales of a group are those with which the block around it
(attention, feed-forward) errs least on a sample; where none is better than no scales, the group stays as it is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from runner.contracts.context import Context, Result
from runner.contracts.metric_ranges import AMOUNT
from runner.contracts.step_kind import CHECKPOINT, Cost, Inputs, Params
from runner.errors import Diagnostic
from runner.model.checkpoint.quantization.presets import resolve
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.steps import layer_rewrites, storage_refusals
from runner.steps.patterns import module_params

if TYPE_CHECKING:
    import torch

    from runner.model.layerwise.block_trials import Rounding
    from runner.model.layerwise.channel_scalings import Scaling
    from runner.model.layerwise.rewritable_layer import RewritableLayer

VERSION = 1
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = {"divergence": AMOUNT, "rounding": AMOUNT, "error": AMOUNT, "error_before": AMOUNT}

SAMPLE_TOKENS = 2048
_LAYOUT = "pack-quantized"  # where integers are laid out does not matter to what rounding makes of them
outcome, changes = layer_rewrites.outcome, layer_rewrites.changes


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    found = layer_rewrites.check(params, inputs)
    try:
        scheme(params)
    except ValueError as error:
        return [*found, Diagnostic("R422", str(error), "leave one of them out", path=("scheme",))]
    sites = [(site, own) for site in inputs.checkpoint.sites if (own := module_params(params, site.name)) is not None]
    return found + storage_refusals.uneven_groups((site, scheme(own)) for site, own in sites)


def scheme(params: Params) -> Scheme:
    """Return the scheme that the scales are for."""
    return resolve(params.get("scheme"), int(params["bits"]), params["group_size"], bool(params["symmetric"]))


def estimate(params: Params, inputs: Inputs) -> Cost:
    return layer_rewrites.estimate(params, inputs, SAMPLE_TOKENS, 18)


def run(ctx: Context) -> Result:
    from runner.model.layerwise.rewriting import RewriteMethod

    finish = partial(clip, ctx.params) if ctx.params["clip"] else None
    method = RewriteMethod(partial(scale, ctx.params), ctx.params["tolerance"], SAMPLE_TOKENS, finish)
    return layer_rewrites.run(ctx, ctx.data("data"), lambda _: method)


def scale(params: Params, layer: RewritableLayer) -> dict[str, dict[str, float]]:
    """Scale the channels of every group; return the error of its block before and after."""
    from runner.methods.channel_scales import awq_scales, search, weight_sizes
    from runner.model.layerwise.block_trials import BlockTrial
    from runner.model.layerwise.rewritable_layer import columns_of

    found = {}
    for scaling in layer.scalings:
        roundings = _roundings(params, layer, scaling)
        if not roundings or not layer.movable(scaling):
            continue
        inputs = columns_of(scaling, layer.sizes[scaling.readers[0]].mean(), "mean")
        weights = [layer.weight(reader) for reader in scaling.readers]
        group = _group(scheme(params), weights[0].shape[1])
        sizes = columns_of(scaling, weight_sizes(weights, group), "mean")
        chosen = search(partial(awq_scales, inputs, sizes), BlockTrial(layer.trials, roundings).error)
        if chosen.scales is not None:
            layer.scale(scaling, chosen.scales)
        for reader in scaling.readers:
            found[layer.site(reader)] = {"error": chosen.cost, "error_before": chosen.before}
    return found


def clip(params: Params, layer: RewritableLayer) -> dict[str, dict[str, float]]:
    """Clip the weights of every linear but queries and keys, whose products count, not they themselves."""
    from runner.methods.weight_clipping import clip as clipped
    from runner.model.architecture.sites import role
    from runner.model.layerwise.layer_trials import inputs_of

    stored = scheme(params)
    for linear in sorted(layer.sizes):
        site = layer.site(linear)
        own = layer_rewrites.site_params(params, site)
        if own is None or role(site) in ("q", "k", "qkv") or layer.stored(f"{linear}.weight") is None:
            continue
        weight = layer.weight(linear)
        inputs = inputs_of(layer.trials[0], layer.layer.get_submodule(linear))
        rounding = _rounding(scheme(own), layer.stored(f"{linear}.weight"))
        weight.copy_(clipped(weight, inputs, _group(stored, weight.shape[1]), rounding.weight))
        layer.changed.add(f"{linear}.weight")
    return {}


def _roundings(params: Params, layer: RewritableLayer, scaling: Scaling) -> dict[str, Rounding]:
    """Return how each reader of a scaling will be rounded; nothing where `ignore` names one of them."""
    found = {}
    for reader in scaling.readers:
        own = layer_rewrites.site_params(params, layer.site(reader))
        if own is None:
            return {}
        found[reader] = _rounding(scheme(own), layer.stored(f"{reader}.weight"))
    return found


def _rounding(stored: Scheme, weight: tuple[str, torch.dtype] | None) -> Rounding:
    import torch

    from runner.methods.quantization_grid import quantize_rtn
    from runner.methods.quantization_scheme import stored_levels
    from runner.model.layerwise.activation_rounding import round_inputs
    from runner.model.layerwise.block_trials import Rounding

    levels = stored_levels(stored, _LAYOUT, torch.float32 if weight is None else weight[1])

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return quantize_rtn(values.contiguous(), levels).dequantize(torch.float32)

    if stored.activations is None or stored.calibrated:
        return Rounding(rounded)
    return Rounding(rounded, partial(round_inputs, numbers=stored.activations))


def _group(stored: Scheme, columns: int) -> int:
    """Return the columns that share a scale."""
    return int(stored.weights.columns(columns))

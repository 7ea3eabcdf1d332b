"""SmoothQuant (Xiao et al. 2023): what makes inputs hard to round moves into the weights that they are multiplied with.

The maths is in runner/methods/channel_scales.py; where scales can move is found on the model itself
(runner/model/layerwise/channel_scalings.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from runner.contracts.context import Context, Result
from runner.contracts.metric_ranges import AMOUNT
from runner.contracts.step_kind import CHECKPOINT, Cost, Inputs, Params
from runner.errors import Diagnostic
from runner.steps import layer_rewrites

if TYPE_CHECKING:
    from runner.model.layerwise.rewritable_layer import RewritableLayer

VERSION = 1
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = {"divergence": AMOUNT, "rounding": AMOUNT}

_TRIALS = 60  # forwards of a batch: on a few tokens while scalings are found, on a batch for the proof
outcome, changes = layer_rewrites.outcome, layer_rewrites.changes


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    return layer_rewrites.check(params, inputs)


def estimate(params: Params, inputs: Inputs) -> Cost:
    return layer_rewrites.estimate(params, inputs, 1, 4)


def run(ctx: Context) -> Result:
    from runner.model.layerwise.rewriting import RewriteMethod

    method = RewriteMethod(partial(smooth, ctx.params), ctx.params["tolerance"])
    return layer_rewrites.run(ctx, ctx.data("data"), lambda _: method)


def smooth(params: Params, layer: RewritableLayer) -> dict[str, dict[str, float]]:
    """Scale the channels of every group of sites that `params` names; return the largest scale of each site.

    A group is left out where one of its sites is in `ignore`, or where its sites have different alphas.
    """
    import torch

    from runner.methods.channel_scales import smooth_scales
    from runner.model.layerwise.rewritable_layer import columns_of

    found = {}
    for scaling in layer.scalings:
        own = [layer_rewrites.site_params(params, layer.site(reader)) for reader in scaling.readers]
        alphas = {None if each is None else float(each["alpha"]) for each in own}
        alpha = alphas.pop() if len(alphas) == 1 else None
        if alpha is None or not (scaling.norm or params["linears"]) or not layer.movable(scaling):
            continue
        inputs = columns_of(scaling, layer.sizes[scaling.readers[0]].largest, "amax")
        largest = torch.stack([layer.weight(reader).abs().amax(0) for reader in scaling.readers]).amax(0)
        scales = layer.scale(scaling, smooth_scales(inputs, columns_of(scaling, largest, "amax"), alpha))
        for reader in scaling.readers:
            found[layer.site(reader)] = {
                "largest_scale": float(scales.max()), "smallest_scale": float(scales.min()),
            }  # fmt: skip
    return found

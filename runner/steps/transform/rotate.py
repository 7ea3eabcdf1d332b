"""Rotations (QuaRot, Ashkboos et al. 2024): channels are mixed so that no single one is much larger than the others.

R1 rotates the residual stream: the weights of norms move into the linears that read them, embeddings and the linears
that write to the stream are rotated, and those that read it are rotated back. R2 rotates the values of each head and
back in the output projection. Both are part of the weights: the result is an ordinary checkpoint. Which modules read
and write is found on the model itself (runner/model/layerwise/residual_stream.py). No data is needed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from runner.contracts.context import Context, Result
from runner.contracts.facts import CheckpointFacts, TensorHeader
from runner.contracts.metric_ranges import AMOUNT
from runner.contracts.model_config import ModelConfig
from runner.contracts.model_description import LINEAR, NORM, ModelDescription
from runner.contracts.step_kind import CHECKPOINT, Cost, Inputs, Params
from runner.errors import Diagnostic
from runner.model.architecture.tied_config import untied
from runner.model.checkpoint import adapter_config
from runner.model.layerwise import memory_budget
from runner.steps import layer_rewrites

if TYPE_CHECKING:
    from runner.methods.rotations import Rotation
    from runner.model.layerwise.channel_scalings import Scaling
    from runner.model.layerwise.outside_rotation import RotatedOutside
    from runner.model.layerwise.rewritable_layer import RewritableLayer
    from runner.model.layerwise.rewriting import RewriteMethod
    from runner.model.layerwise.streamed_model import StreamedModel

VERSION = 1
CONSUMES = (CHECKPOINT,)
PRODUCES = CHECKPOINT
REQUIRES = ()
METRICS = {"divergence": AMOUNT, "rounding": AMOUNT}

WINDOWS, LENGTH = 4, 32  # tokens that layers are tried on


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "this step would change those")
    if not (params["residual"] or params["heads"]):
        message = "`residual` and `heads` are both false: this step changes nothing"
        found.append(Diagnostic("R418", message, "leave the step out", path=("residual",), severity="warning"))
    if params["residual"]:
        found += _orders(params, facts) + _norms(facts)
    return found


def _orders(params: Params, facts: CheckpointFacts) -> list[Diagnostic]:
    """Return complaints about a hidden size that blocks do not divide, or of which there is no Hadamard matrix."""
    from runner.methods.hadamard_orders import hadamard_order

    width = facts.config.hidden_size
    block = params["block_size"] or width
    if width % block:
        message = f"blocks of {block} channels do not divide the hidden size {width} of `{facts.source}`"
        return [Diagnostic("R622", message, f"choose a divisor of {width}", path=("block_size",))]
    if params["matrix"] == "hadamard" and not hadamard_order(block):
        message = f"no Hadamard matrix of order {block} can be made by Sylvester's and Paley's constructions"
        help = "use `matrix: orthogonal`, a random rotation, or a `block_size` that is a power of 2"
        return [Diagnostic("R622", message, help, path=("matrix",))]
    return []


def _norms(facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a complaint about norms that stand between the residual stream and what writes to it."""
    description = facts.description
    if description is None:
        return []
    norms = [each.name for each in description.parameters if each.kind == NORM and each.name.endswith(".weight")]
    first = next((name for name in norms if _is_after(name.split(".")[-2])), None)
    outside = [name for name in norms if not name.startswith(f"{description.layers}.")]
    if first is not None:
        what = f"multiplies what its blocks give by the weight of a norm, `{first}`, before it is added"
    elif len(outside) > 1:
        what = f"has a norm between its embeddings and its layers, `{outside[0]}`"
    elif len(norms) == len(outside):
        what = "has no norm with a weight in its layers"
    else:
        return []
    source = f"`{facts.source}` (`{facts.config.model_type}`)"
    message = f"the residual stream of {source} cannot be rotated: the model {what}"
    help = "set `residual: false`, which leaves the rotation of heads"
    return [Diagnostic("R623", message, help, path=("residual",))]


def _is_after(module: str) -> bool:
    after = ("post_feedforward", "post_mlp", "post_self_attn", "post_ffw", "post_attn_norm")
    return any(module.startswith(name) for name in after)


def estimate(params: Params, inputs: Inputs) -> Cost:
    facts, machine = inputs.checkpoint, inputs.machine
    disk = sum(tensor.nbytes for tensor in outcome(params, inputs).tensors.values())
    layer = memory_budget.layer_weights(facts) * 4
    largest = max((site.size for site in facts.sites), default=0)
    peak = memory_budget.RUNTIME + max(layer + 3 * 4 * largest, 2 * memory_budget.rest_bytes(facts, 4))
    peak += 0 if machine.device == "cpu" else memory_budget.CUDA_RUNTIME
    seconds = 8 + 2 * disk / machine.disk_bytes_per_second + 400 * facts.parameters / machine.flops
    return Cost(peak, disk, disk, seconds)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    """Return the facts of the result: embeddings and head that share a tensor get one each."""
    facts = inputs.checkpoint
    head = _tied_head(facts.description) if params["residual"] else None
    if head is None or facts.description is None:
        return facts
    name, source = head
    stored = next(p.stored for p in facts.description.parameters if p.name == source)
    shared = facts.tensors[stored or source]
    own = TensorHeader(name, shared.dtype, shared.shape, "", 0, shared.nbytes)
    return replace(
        facts,
        tensors={**facts.tensors, name: own},
        config=ModelConfig.of(untied(facts.config.raw)),
        description=_with_own(facts.description, name),
    )


def _tied_head(description: ModelDescription | None) -> tuple[str, str] | None:
    """Return the parameter of a pair of embeddings and head that has no tensor of its own, and the one that has."""
    ties = (description.ties or {}) if description is not None else {}
    return next(iter(sorted(ties.items())), None)


def _with_own(description: ModelDescription, name: str) -> ModelDescription:
    parameters = tuple(replace(p, stored=name) if p.name == name else p for p in description.parameters)
    module = name.rpartition(".")[0]
    linears = tuple(replace(m, stored=module) if m.name == module else m for m in description.linears.modules)
    return replace(
        description,
        parameters=parameters,
        ties={target: source for target, source in (description.ties or {}).items() if target != name},
        linears=replace(description.linears, modules=linears),
    )


def changes(params: Params, inputs: Inputs) -> set[str]:
    """Return the tensors that may get other values: those of the layers, and of embeddings, last norm and head."""
    facts = inputs.checkpoint
    found = layer_rewrites.changes(params, inputs)
    if not params["residual"] or facts.description is None:
        return found if not params["residual"] else set(facts.tensors)
    outside = [p for p in facts.description.parameters if not (p.stored or "").startswith(facts.layers_prefix)]
    return found | {p.stored for p in outside if p.stored is not None and p.kind in ("embedding", "norm", LINEAR)}


def adds(params: Params, inputs: Inputs) -> dict[str, str]:
    """Return the tensor that a pair of embeddings and head gets, with the reason."""
    head = _tied_head(inputs.checkpoint.description) if params["residual"] else None
    return {} if head is None else {head[0]: f"it no longer shares `{head[1]}`"}


def run(ctx: Context) -> Result:
    import torch

    from runner.model.layerwise.outside_rotation import rotate_outside

    checkpoint = ctx.inputs["checkpoint"].path
    generator = torch.Generator().manual_seed(ctx.seed)

    def outside(streamed: StreamedModel, method: RewriteMethod) -> RotatedOutside:
        from runner.model.checkpoint.headers import model_config

        if method.basis is None:
            raise ValueError("hidden states stay in their basis")
        return rotate_outside(streamed, method.basis, ids[:, :8].to(streamed.device), model_config(checkpoint).raw)

    from runner.model.checkpoint.headers import model_config

    vocabulary = model_config(checkpoint).vocabulary_size
    ids = torch.randint(0, vocabulary, (WINDOWS, LENGTH), generator=generator)
    return layer_rewrites.run(ctx, ids, partial(_method, ctx), outside if ctx.params["residual"] else None)


def _method(ctx: Context, streamed: StreamedModel) -> RewriteMethod:
    from runner.methods.rotations import rotation
    from runner.model.layerwise.residual_stream import keeps_mean
    from runner.model.layerwise.rewriting import RewriteMethod

    params, width = ctx.params, streamed.hidden_size
    stream = None
    if params["residual"]:
        block = params["block_size"] or width
        stream = rotation(width, block, params["matrix"], ctx.seed, keeps_mean=keeps_mean(streamed))
    rotated = partial(rotate, params, ctx.seed, stream, _heads(streamed))
    return RewriteMethod(rotated, params["tolerance"], basis=None if stream is None else stream.apply)


def _heads(streamed: StreamedModel) -> int:
    return int(getattr(streamed.config.get_text_config(), "num_attention_heads", 0) or 0)


def rotate(
    params: Params, seed: int, stream: Rotation | None, heads: int, layer: RewritableLayer
) -> dict[str, dict[str, float]]:
    """Rotate the values of heads, then the residual stream; return the sites that changed, without metrics."""
    from runner.model.layerwise.layer_rotation import rotate_stream
    from runner.model.layerwise.residual_stream import find_stream

    found: dict[str, dict[str, float]] = {}
    connected = find_stream(layer.scout) if stream is not None else None
    for scaling in layer.scalings if params["heads"] and heads else ():
        if not scaling.norm and layer.movable(scaling) and _rotate_heads(params, seed, heads, layer, scaling):
            found |= {layer.site(name): {} for name in (scaling.source, *scaling.readers)}
    if stream is not None and connected is not None:
        rotate_stream(layer, connected, stream.apply)
        names = [*connected.writers, *(name for group in connected.readers.values() for name in group)]
        found |= {layer.site(name): {} for name in names}
    return found


def _rotate_heads(params: Params, seed: int, heads: int, layer: RewritableLayer, scaling: Scaling) -> bool:
    """Rotate the values of each head if the channels of a scaling are those of heads, which is tried."""
    from runner.methods.hadamard_orders import hadamard_order
    from runner.methods.rotations import rotation
    from runner.model.layerwise.layer_rotation import head_values, rotate_heads

    values = head_values(scaling, heads)
    if values is None:
        return False
    size = values.size
    block = params["block_size"] if params["block_size"] and size % params["block_size"] == 0 else size
    kind = params["matrix"] if hadamard_order(block) else "orthogonal"
    return rotate_heads(layer, scaling, values, rotation(size, block, kind, seed).matrix())


__all__ = [
    "CONSUMES", "METRICS", "PRODUCES", "REQUIRES", "VERSION", "adds", "changes", "check", "estimate", "outcome", "run",
]  # fmt: skip

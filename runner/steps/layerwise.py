"""The common part of layer-wise kinds, so that such a kind is its `transform` and a schema.

    method = LayerMethod(transform, statistics="hessian", stacked=True)
    check, estimate, outcome, run = bind(method)

`check` refuses modules that the stream or the format cannot handle, naming each; `estimate` forecasts from the headers;
`outcome` returns the facts of the result; `run` streams. Imported by the planner: no torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from runner.contracts.context import Context, Result
from runner.contracts.facts import DTYPE_BYTES, CheckpointFacts, TensorHeader
from runner.contracts.planned_account import check_written
from runner.contracts.sites import Site
from runner.contracts.step_kind import Cost, Inputs, Params
from runner.errors import Diagnostic
from runner.model.checkpoint import adapter_config, formats
from runner.model.checkpoint.headers import read_headers
from runner.model.checkpoint.quantization import checkpoint_config
from runner.model.checkpoint.quantization.format import Matrix, Refusal
from runner.model.layerwise import memory_budget
from runner.model.layerwise.paired_lanes import paired_lanes
from runner.steps import automatic, divided, experts, rounded_inputs, storage_refusals
from runner.steps.assignment import is_auto
from runner.steps.fused_sites import refuse_split
from runner.steps.layer_method import LayerMethod
from runner.steps.patterns import matches
from runner.steps.stream_cost import active_weights, compared_every, expert_inputs, squares, stacks, working_bytes
from runner.steps.targets import chosen, planned, scheme

__all__ = ["LayerMethod", "bind", "check", "estimate", "outcome", "run", "unmatched"]

HEAD = "lm_head"
_ALONE = "it changes linear modules of decoder layers alone"

Bound = tuple[
    Callable[[Params, Inputs], list[Diagnostic]],
    Callable[[Params, Inputs], Cost],
    Callable[[Params, Inputs], CheckpointFacts],
    Callable[[Context], Result],
]


def bind(method: LayerMethod) -> Bound:
    """Return the functions `check, estimate, outcome, run` of a kind."""
    return check, partial(estimate, method), outcome, partial(run, method)


def run(method: LayerMethod, ctx: Context) -> Result:
    from runner.model.architecture.inspect import of_artifact
    from runner.steps import layer_stream as stream

    checkpoint = ctx.inputs["checkpoint"]
    facts = of_artifact(checkpoint)
    params, assignment = automatic.settled(ctx, facts)
    result = stream.compress(checkpoint, stream.compression(ctx, method, params), stream.stream_run(ctx), ctx)
    if assignment:  # the plan could not know the shapes
        shapes = {name: header.shape for name, header in _made(params, facts).tensors.items()}
        check_written(shapes, {name: h.shape for name, h in read_headers(ctx.out_dir).items()}, (), result.account)
    return replace(result, details={**result.details, **assignment})


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    """Return the complaints about a step; with `bits: auto` those about the first candidate that has any."""
    found = automatic.check(params, inputs)
    if not is_auto(params):
        return found + _check(params, inputs)
    if any(each.severity == "error" for each in found):
        return found
    stages: list[Callable[[Inputs], list[Diagnostic]]] = [
        *(partial(_check, own) for own in automatic.each_candidate(params, inputs)),
        partial(automatic.check_budget, params),
        lambda given: _check(automatic.planned(params, given), given),
    ]
    for stage in stages:
        found += [each for each in stage(inputs) if each not in found]
        if any(each.severity == "error" for each in found):
            break
    return found


def _check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "this step would change those") + unmatched(params, facts)
    linears = chosen(params, facts)
    if not linears:
        found.append(Diagnostic("R410", "`ignore` leaves no linear module to change", path=("ignore",)))
    found += nothing_pruned(params, linears.values()) + undivided_patterns(linears)
    contradictions = _contradictions(linears.values())
    if contradictions:
        return found + contradictions
    refused = [(site, why) for site, own in linears.items() if (why := _refusal(site, own, facts)) is not None]
    found += storage_refusals.complaints(refused)
    packed = planned(params, facts)
    if packed and not refused:
        together = checkpoint_config.refuse_together(packed)
        # Where a reader other than transformers loads them together, the model card names it.
        if together is not None and not any(reader.load for reader in formats.readers(packed.values())):
            found.append(Diagnostic("R413", *together, path=("overrides",)))
        else:
            unloadable = checkpoint_config.refuse(packed, facts.linears, facts.tensors)
            if unloadable is not None:
                found.append(Diagnostic("R413", *unloadable, path=("format",)))
            else:
                found += rounded_inputs.warn(packed, facts)
        found += refuse_split(params, packed, facts.sites)
        found += _joined(facts)
        found += _wider(linears.values())
    return found + experts.refuse(params, linears, facts) + divided.check(inputs) + divided.refuse_mixtures(inputs)


def _wider(options: Iterable[Params]) -> list[Diagnostic]:
    """Return a warning where weights take more bits on disk than their levels need."""
    wide = sorted({own["scheme"] for own in options if (found := scheme(own)) is not None and found != found.stored})
    if not wide:
        return []
    message = (
        f"the 15 levels of `scheme: {wide[0]}` are stored as integers of 8 bits, which have all of them: no format "
        "that a server reads has powers of two in 4 bits"
    )
    help = "use `scheme: nf4` where size counts, and this one where weights are to be powers of two"
    return [Diagnostic("R616", message, help, path=("scheme",), severity="warning")]


def _joined(facts: CheckpointFacts) -> list[Diagnostic]:
    """Return a complaint about weights that transformers makes others of while it loads a model.

    Where modules are packed its converters take packed weights alone (5.23), and find none.
    """
    built = () if facts.description is None else facts.description.built
    joined = next((name for name in built if name.endswith(".weight")), None)
    if joined is None:
        return []
    message = f"transformers makes another tensor of `{joined}` on loading, which it cannot beside packed modules"
    return [Diagnostic("R413", message, "use a kind that keeps weights dense", path=("format",))]


def _refusal(site: Site, own: Params, facts: CheckpointFacts) -> Refusal | None:
    """Return why a site cannot be stored as its params ask."""
    stored = scheme(own)
    if stored is None:
        return None
    stored_as = facts.tensors[site.tensor].dtype if site.tensor in facts.tensors else ""
    matrix = Matrix(site.rows, site.columns, site.transposed and site.index is None, stored_as)
    return formats.refuse(own["format"], stored.stored, matrix)


def _contradictions(params: Iterable[Params]) -> list[Diagnostic]:
    """Return complaints about contradictory parameters of how a weight is stored, each once."""
    found = {}
    for own in params:
        try:
            scheme(own)
        except ValueError as error:
            found[str(error)] = Diagnostic("R422", str(error), "leave one of them out", path=("scheme",))
    return list(found.values())


def unmatched(
    params: Params, facts: CheckpointFacts, keys: Sequence[str] = ("ignore", "overrides", "per_layer")
) -> list[Diagnostic]:
    """Return complaints about patterns without effect: they match no module, or only modules in `ignore`.

    `ignore` may name "lm_head", which no step changes; `ignore: []` gives a warning that the head still does not
    change.
    """
    names = [linear.name for linear in facts.sites]
    ignored = params.get("ignore", ())
    found = []
    for key in keys:
        for pattern in params.get(key) or ():
            named = [name for name in names if matches(pattern, name)]
            if not named and not (key == "ignore" and pattern == HEAD):
                found.append(_no_module(key, pattern, names))
            elif key != "ignore" and named and all(any(matches(i, name) for i in ignored) for name in named):
                message = f"`{key}` names `{pattern}`, and `ignore` leaves out every module that it matches"
                found.append(Diagnostic("R412", message, "take it out of one of the two", path=(key, pattern)))
    if "ignore" in keys and params.get("ignore") == []:
        message = f"`ignore: []` does not make this step change `{HEAD}`: {_ALONE}"
        found.append(Diagnostic("R418", message, "leave it out", path=("ignore",), severity="warning"))
    return found


def _no_module(key: str, pattern: str, names: Sequence[str]) -> Diagnostic:
    if pattern == HEAD:
        message = f"`{key}` names `{HEAD}`, which this step leaves as it is: {_ALONE}"
        return Diagnostic("R412", message, "leave it out", path=(key, pattern))
    tails = ", ".join(f"`{t}`" for t in sorted({n.rpartition(".")[2] for n in names}))
    message = f"`{key}` names `{pattern}`, which matches no linear module of this model"
    return Diagnostic("R412", message, f"its linear modules are {tails}", path=(key, pattern))


def nothing_pruned(params: Params, owns: Iterable[Params]) -> list[Diagnostic]:
    """Return a warning where the sparsity of every module that a step changes is 0."""
    owns = list(owns)
    if "sparsity" not in params or not owns or any(own["sparsity"] > 0 for own in owns):
        return []
    message = "`sparsity` is 0 in every module: this step changes nothing"
    return [Diagnostic("R418", message, "set the part of the weights that is to become zero, or leave the step out",
                       path=("sparsity",), severity="warning")]  # fmt: skip


def undivided_patterns(linears: Mapping[Site, Params]) -> list[Diagnostic]:
    """Return a complaint where the m of a pattern n:m does not divide the columns of modules."""
    wrong: list[tuple[Site, str]] = []
    for linear, own in linears.items():
        pattern = str(own.get("pattern", ""))
        if ":" in pattern and linear.columns % int(pattern.partition(":")[2]):
            wrong.append((linear, f"has {linear.columns} columns"))
    if not wrong:
        return []
    lines = storage_refusals.lines(wrong)
    message = f"the pattern does not fit modules whose columns it does not divide:{lines}"
    return [Diagnostic("R631", message, "`ignore` them, or use `pattern: unstructured`", path=("pattern",))]


def estimate(method: LayerMethod, params: Params, inputs: Inputs) -> Cost:
    params = automatic.planned(params, inputs)
    facts, machine = inputs.checkpoint, inputs.machine
    disk = sum(tensor.nbytes for tensor in outcome(params, inputs).tensors.values())
    biggest = max((i.size for i in facts.sites), default=0)
    weights = sum(i.size for i in facts.sites)
    copy_seconds = 2 * disk / machine.disk_bytes_per_second
    want = method.wants(params)
    learns = method.block is not None
    if (want == "none" and not learns) or "data" not in inputs.data:
        seconds = 2.5 + copy_seconds + facts.nbytes / machine.disk_bytes_per_second + 60 * weights / machine.flops
        # About a byte for each weight, in code and scales, twice while they are packed; experts are written one by one.
        layer = memory_budget.changed_layer_bytes(facts, 1, copies=0) * (1 if expert_inputs(facts) else 2)
        return Cost(memory_budget.WEIGHTS_RUNTIME + working_bytes(biggest) + layer, disk, disk, seconds)
    data = inputs.data["data"]
    products = want in ("hessian", "cross")
    paired = paired_lanes(want, compared_every(params), learns=learns, has_experts=bool(facts.linears.mixtures))
    lanes = paired.lanes
    tokens = data.tokens
    value = memory_budget.compute_bytes(facts, machine.device)
    hidden, columns = facts.config.hidden_size, memory_budget.widest(facts)
    held = int(memory_budget.suspended_bytes(tokens, hidden, columns, value, 1) * paired.forwards)
    suspends = held <= memory_budget.suspend_limit(machine.device_memory) and params.get("true_sequential", True)
    solving = max(
        (4 * width**2 * (5 if want == "cross" else 4) if products else 0) + working_bytes(stack)
        for width, stack in stacks(method, facts).items()
    )
    peak = memory_budget.RUNTIME + max(
        memory_budget.changed_layer_bytes(facts, value) * lanes, memory_budget.rest_bytes(facts, value)
    )
    if machine.device == "cpu":
        peak += int(held * memory_budget.SUSPENDED_HEAP) if suspends else 0
        peak += max(memory_budget.batch_bytes(facts, data.sequence_length, value, machine.device), solving)
    else:  # forwards and solving are on the GPU
        peak += memory_budget.CUDA_RUNTIME
    forward = 2 * tokens * active_weights(facts) * paired.forwards * (1 if suspends else 2.6)
    square = tokens * squares(params, facts) * (1 + 2 / paired.counted if want == "cross" else 1) if products else 0
    seconds = 5 + copy_seconds + (forward + square) / machine.flops
    scratch = disk + 2 * lanes * tokens * hidden * value
    if machine.device != "cpu":
        seconds = 5 + copy_seconds + (forward + square) / (machine.flops * inputs.processes)
    if facts.linears.mixtures:  # what enters the experts of a layer, and what they give
        scratch += lanes * tokens * hidden * (value + 4)
    matrices = 2 * lanes if products else 0
    return divided.shared(Cost(peak, disk, scratch, seconds), inputs, divided.widest_sum(facts, matrices))


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    """Return the facts of the result: packed tensors replace the weights that get a scheme."""
    return _made(automatic.planned(params, inputs), inputs.checkpoint)


def _made(params: Params, facts: CheckpointFacts) -> CheckpointFacts:
    """Return the facts of what a step with the bits of every module makes of a checkpoint."""
    tensors = dict(facts.tensors)
    stored = planned(params, facts)
    for linear in facts.sites:
        own = stored.get(linear.name)
        if own is None:
            continue
        header = facts.tensors[linear.tensor]
        tensors.pop(linear.tensor, None)
        matrix = Matrix(linear.rows, linear.columns, linear.transposed and linear.index is None)
        new = formats.find(own.format).tensors(linear.name, own.scheme, matrix, header.dtype)
        for name, (dtype, extents) in new.items():
            size = DTYPE_BYTES[dtype] * math.prod(extents)
            tensors[name] = TensorHeader(name, dtype, extents, "", 0, size)
    mark = facts.quantization
    if stored:
        act_order = bool(params.get("act_order", False))
        mark = checkpoint_config.write(stored, facts.tensors, facts.linears, act_order=act_order)
    return replace(facts, tensors=tensors, quantization=mark, sites=tuple(_apart(s, stored) for s in facts.sites))


def _apart(site: Site, packed: Collection[str]) -> Site:
    """The site of an expert in tensors of its own, where it is stored so now."""
    if site.index is None or site.name not in packed:
        return site
    return replace(site, tensor=f"{site.name}.weight", index=None, transposed=False, part=(0, 1))

"""EoRA (Liu et al. 2024): a low-rank term added to each compressed linear, in closed form from calibration statistics.

The maths is in low_rank.py. On the layer stream, each layer's terms are applied while the inputs of the next ones are
collected. They are stored as a peft adapter with the weights and never merged: merging would lose the integers of a
quantized checkpoint and the zeros of a pruned one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.contracts.account import Account
from runner.contracts.facts import CheckpointFacts
from runner.contracts.sites import Site
from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, SAME, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic, StepFailed
from runner.model.architecture import supported
from runner.model.checkpoint import adapter_config
from runner.model.layerwise import memory_budget
from runner.model.layerwise.method import Linear, Statistics, Transformed
from runner.steps import layerwise
from runner.steps.experts import refuse_adapters, refuse_renamed
from runner.steps.integer_weights import refuse_others
from runner.steps.layer_method import ERRORS, LayerMethod
from runner.steps.targets import chosen

if TYPE_CHECKING:
    from runner.model.checkpoint.reader import CheckpointReader
    from runner.model.layerwise.method import Results

VERSION = 7
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = SAME
REQUIRES = ()
METRICS = ERRORS

SAMPLED_ROWS = 512
_BYTES = 4  # per value of an adapter: peft computes adapters in float32
_SHOWN = 5  # modules that a complaint lists


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    facts, reference = inputs.checkpoint, inputs.others["against"]
    found = layerwise.unmatched(params, facts) + refuse_others(facts, "recover.eora")
    linears = list(chosen(params, facts))
    found += refuse_adapters(linears, "recover.eora", 'leave them out: `ignore: [lm_head, "*.experts.*"]`')
    found += refuse_renamed(linears, facts, "ignore", "leave them out: name them in `ignore`")
    if not linears:
        found.append(Diagnostic("R410", "`ignore` leaves no linear module to change", path=("ignore",)))
    found += adapter_config.adapter_conflicts(facts.adapter, "one more would be fitted to them without it")
    if reference.adapter is not None:
        message = (
            f"`against` names a checkpoint with an adapter in `{adapter_config.FOLDER}/`, which its weights do not hold"
        )
        found.append(Diagnostic("R471", message, "name the checkpoint as it was before", path=("against",)))
    found += _differing(linears, reference)
    narrow = [i for i in linears if params["rank"] > min(i.columns, i.rows)]
    if narrow:
        narrow.sort(key=lambda i: min(i.columns, i.rows))
        lines = _listed([f"    `{i.name}` is [{i.rows}, {i.columns}]" for i in narrow])
        smallest = min(narrow[0].columns, narrow[0].rows)
        message = f"`rank` {params['rank']} is above the size of {_modules(len(narrow))}:\n{lines}"
        help = f"lower `rank` to {smallest}, or name those modules in `ignore`"
        found.append(Diagnostic("R472", message, help, path=("rank",)))
    return found


def _differing(linears: list[Site], reference: CheckpointFacts) -> list[Diagnostic]:
    """Return a complaint about modules that `against` does not have, or has in another shape."""
    theirs = {linear.name: linear for linear in reference.sites}
    lines = []
    for own in linears:
        other = theirs.get(own.name)
        if other is None:
            lines.append(f"    `{own.name}` is not in `against`")
        elif (other.rows, other.columns) != (own.rows, own.columns):
            shapes = f"[{own.rows}, {own.columns}], in `against` [{other.rows}, {other.columns}]"
            lines.append(f"    `{own.name}` is {shapes}")
    if not lines:
        return []
    message = f"{_modules(len(lines))} of the checkpoint cannot be compared with `against`:\n{_listed(lines)}"
    help = "name the checkpoint that this one was quantized or pruned from, with the same layers"
    return [Diagnostic("R475", message, help, path=("against",))]


def _listed(lines: list[str]) -> str:
    return "\n".join(lines[:_SHOWN]) + (f"\n    and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")


def _modules(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"


def estimate(params: Params, inputs: Inputs) -> Cost:
    """Return the cost of a calibrated stream with reference weights, and of solving.

    Solving takes three products and an eigenvalue problem for each linear.
    """
    facts = inputs.checkpoint
    cost = layerwise.estimate(LayerMethod(_nothing, statistics=wanted), params, inputs)
    linears = list(chosen(params, facts))
    adapter = sum(_BYTES * params["rank"] * (i.columns + i.rows) for i in linears)
    sides = [(min(i.columns, i.rows), i.columns, i.rows) for i in linears]
    work = sum(10.0 * small**3 + 6.0 * outs * ins**2 for small, ins, outs in sides)
    working = max((4 * (4 * small**2 + 2 * ins**2) for small, ins, _ in sides), default=0)
    return Cost(
        memory=max(cost.memory + working, memory_budget.RUNTIME + adapter),
        disk=facts.nbytes + adapter,
        scratch=cost.scratch - facts.nbytes + adapter,
        seconds=cost.seconds + work / inputs.machine.flops,
    )


def wanted(params: Params) -> str:
    """Return the statistic to collect: "cross" also needs the inputs of the original model."""
    return "cross" if params["asymmetric_calibration"] else "hessian"


def _nothing(linear: Linear, statistics: Statistics, params: Mapping[str, Any]) -> Transformed:
    return Transformed()


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    """Return the facts of the same checkpoint with an adapter."""
    facts = inputs.checkpoint
    linears = chosen(params, facts)
    names = adapter_config.targets([i.name for i in linears], [i.name for i in facts.sites if not i.is_expert])
    return replace(
        facts, adapter=adapter_config.config(params["rank"], params["rank"], names, transposed=_conv1d(facts))
    )


def changes(params: Params, inputs: Inputs) -> Collection[str]:
    return ()


def _conv1d(facts: CheckpointFacts) -> bool:
    """Return whether the linears are GPT-2's, which store a dense weight as [in, out]."""
    return facts.config.model_type in supported.CONV1D_TYPES


def run(ctx: Context) -> Result:
    from runner.model.architecture.inspect import of_artifact
    from runner.model.checkpoint.reader import CheckpointReader
    from runner.model.checkpoint.writer import CheckpointWriter
    from runner.model.layerwise import engine
    from runner.model.layerwise.calibrated import Calibrated
    from runner.model.layerwise.stream_run import StreamInputs
    from runner.steps import layer_stream

    source, against = ctx.inputs["checkpoint"].path, ctx.inputs["against"].path
    facts = of_artifact(ctx.inputs["checkpoint"])
    parts = CheckpointWriter(ctx.scratch_dir / "parts")
    with CheckpointReader(against) as reference:
        method = LayerMethod(partial(term, reference, _conv1d(facts)), statistics=wanted)
        inputs = StreamInputs(source, facts, ctx.device, ctx.data("data"), original=against)
        layers = Calibrated(inputs, layer_stream.resolved(method, ctx.params, facts))
        names = layers.model_names()

        def store(index: int, changed: Mapping[str, Transformed]) -> dict[str, Any]:
            pairs = {names[name]: result.added for name, result in changed.items() if result.added is not None}
            tensors = {f"{name}.lora_{letter}.weight": tensor for name, pair in pairs.items()
                       for letter, tensor in zip("AB", pair, strict=True)}  # fmt: skip
            parts.add(f"layer-{index:05d}", tensors)
            return {"layer": index, "modules": {name: dict(result.metrics) for name, result in changed.items()}}

        results = engine.walk(layers, store, layer_stream.stream_run(ctx))
    if not any(module["error_before"] for layer in results for module in layer["modules"].values()):
        raise StepFailed(
            "there is no error to make up for: the weights of the checkpoint are those of `against`",
            "let `from` name the compressed checkpoint, and `against` the one it was made from",
        )
    account = _write(ctx, parts.folder, sorted(names.values()), facts, results)
    found = layer_stream.summary(ctx.out_dir, results)
    size = (ctx.out_dir / adapter_config.FOLDER / adapter_config.WEIGHTS).stat().st_size
    return replace(found, metrics={**found.metrics, "rank": ctx.params["rank"], "adapter_bytes": size}, account=account)


def term(
    reference: CheckpointReader, conv1d: bool, linear: Linear, statistics: Statistics, params: Mapping[str, Any]
) -> Transformed:
    """Return the low-rank term of one linear, whose compressed weight `linear` holds.

    E is W − Ŵ plus `asymmetric_calibration` times the shift of low_rank.py. `error` and `error_before` are
    those of the output, with the term and without: tr(E H Eᵀ) / tr(W H Wᵀ) over up to SAMPLED_ROWS evenly spaced rows.
    """
    from runner.methods.low_rank import compensate, damped, energy, shift

    name = linear.names[0]
    stored = reference.read_module_weight(name).to(linear.weight.device).float()
    weight = stored.T if conv1d and not reference.is_packed(name) else stored
    error, moment = weight - linear.weight, statistics.of("hessian")
    steady = damped(moment, params["dampening_fraction"])
    if params["asymmetric_calibration"]:
        error += params["asymmetric_calibration"] * shift(weight, statistics.of("cross"), steady)
    a, b = compensate(error, steady, params["rank"])
    rows = slice(None, None, -(-linear.out_features // SAMPLED_ROWS))
    total = energy(weight[rows], moment)
    left = error[rows] - b[rows] @ a
    shares = [energy(part, moment) / total if total > 0 else 0.0 for part in (error[rows], left)]
    return Transformed(added=(a, b), metrics={"error_before": shares[0], "error": shares[1]})


def _write(ctx: Context, parts: Path, names: list[str], facts: CheckpointFacts, results: Results) -> Account:
    """Write the files of the compressed checkpoint with the adapter; existing files are overwritten."""
    from runner.model.checkpoint import derived
    from runner.model.checkpoint.headers import model_config, read_shard
    from runner.model.checkpoint.reader import CheckpointReader
    from runner.steps import model_card

    rank, card = ctx.params["rank"], model_card.render(ctx, results)
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    headers = {name: header for file in files for name, header in read_shard(parts, file).items()}
    with CheckpointReader(parts, headers) as reader:
        tensors = {name: reader.read(name) for name in reader.names()}
    targets = adapter_config.targets(sorted({name.rpartition(".lora_")[0] for name in tensors}), names)
    adapter = adapter_config.config(rank, rank, targets, transposed=_conv1d(facts))
    with CheckpointReader(ctx.inputs["checkpoint"].path) as source:
        return derived.write(
            source,
            derived.Derived(
                derived.Patches(),
                config=adapter_config.loadable(model_config(source.folder).raw),
                adapter=derived.Adapter(adapter, tensors),
                card=lambda folder: f"{card(folder)}\n{_section(rank, results)}",
            ),
            ctx.out_dir,
        )


def _section(rank: int, results: Results) -> str:
    """Return the section of the model card about the adapter."""
    modules = [module for layer in results for module in layer["modules"].values()]
    was, is_ = (sum(m[key] for m in modules) / len(modules) for key in ("error_before", "error"))
    return _SECTION.format(rank=rank, was=was, is_=is_)


_SECTION = """\
## Adapter

`adapter/` holds a low-rank adapter (EoRA, rank {rank}, no training) that makes up for part of the compression error of
these weights: the relative squared error of a linear module's output falls from {was:.4g} to {is_:.4g} in the mean.
"""

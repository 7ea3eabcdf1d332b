"""LoRA (Hu 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu 2024) on a dense, pruned or quantized checkpoint.

The trained adapter is merged into dense weights, under the mask where they are pruned; with integers it is stored as an
adapter, or the merged weights are quantized again. The maths is in runner/training/modules/lora_math.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner.contracts import metric_ranges
from runner.contracts.account import Account
from runner.contracts.facts import CheckpointFacts
from runner.contracts.mixtures import ExpertParameter
from runner.contracts.sites import Site
from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, SAME, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic
from runner.model.architecture import supported
from runner.model.checkpoint import adapter_config
from runner.steps import layerwise, teacher, training_objective
from runner.steps.experts import refuse_renamed, refuse_requantizing
from runner.steps.integer_weights import refuse_others
from runner.steps.patterns import matches
from runner.steps.recover import expert_adapters, requantize
from runner.training.estimate import heap_share

if TYPE_CHECKING:
    import torch

VERSION = 6
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = SAME
REQUIRES = ()
METRICS = metric_ranges.TRAINING
DISTRIBUTED = True

_FREED = 3  # blocks of an adapted module that peft makes and frees: its output, that of the factors, and that scaled
SHOWN = 5  # modules that a complaint lists, the narrowest first


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "a second one would be trained without it")
    found += layerwise.unmatched(params, facts, ("target_modules",)) + refuse_others(facts, "recover.lora")
    linears = targets(params, facts)
    found += expert_adapters.check(params, facts, linears)
    if merges(params, facts) == "keep":
        remedy = "leave them out of `target_modules`, or merge the adapter (on a dense checkpoint `merge: auto`)"
        found += refuse_renamed(linears, facts, "target_modules", remedy)
    adapted: list[Site | ExpertParameter] = [i for i in linears if not i.is_expert]
    adapted += expert_adapters.parameters(linears, facts.linears.mixtures)
    wide = [i for i in adapted if params["rank"] > min(i.columns, i.rows)]
    if wide:
        wide.sort(key=lambda i: min(i.columns, i.rows))
        listed = [f"\n    `{i.name}` has {i.columns} inputs and {i.rows} outputs" for i in wide[:SHOWN]]
        more = f"\n    and {len(wide) - SHOWN} more" if len(wide) > SHOWN else ""
        smallest = min(wide[0].columns, wide[0].rows)
        noun = "1 module" if len(wide) == 1 else f"{len(wide)} modules"
        message = f"`rank` {params['rank']} is above the width of {noun}:{''.join(listed)}{more}"
        help = f"lower `rank` to {smallest} or less, or leave them out of `target_modules`"
        found.append(Diagnostic("R472", message, help, path=("rank",)))
    if params["merge"] == "requantize" and not facts.quantization:
        message = "`merge: requantize` on a checkpoint that is not quantized"
        found.append(Diagnostic("R473", message, "use `merge: auto`, which merges into it", path=("merge",)))
    if params["merge"] == "requantize":
        found += refuse_requantizing(facts, "merge")
        found += requantize.refuse(facts) if facts.quantization else []
    return found + training_objective.check(params, inputs)


def targets(params: Params, facts: CheckpointFacts) -> list[Site]:
    """Return the linears that get an adapter."""
    return [i for i in facts.sites if any(matches(pattern, i.name) for pattern in params["target_modules"])]


def merges(params: Params, facts: CheckpointFacts) -> str:
    """Return what happens to the adapter: "merge" (into dense weights), "keep" or "requantize"."""
    chosen = str(params["merge"])
    return chosen if chosen != "auto" else "keep" if facts.quantization else "merge"


def parameters(params: Params, facts: CheckpointFacts) -> int:
    """Return the number of weights of all adapters."""
    chosen, rank = targets(params, facts), int(params["rank"])
    magnitudes = int(params["variant"] == "dora")
    linears = sum(rank * (i.columns + i.rows) + magnitudes * i.rows for i in chosen if not i.is_expert)
    experts = expert_adapters.parameters(chosen, facts.linears.mixtures)
    return linears + sum(each.adapter_size(rank) for each in experts)


def trains(params: Params, inputs: Inputs) -> str:
    facts = inputs.checkpoint
    chosen = targets(params, facts)
    linears = sum(not i.is_expert for i in chosen)
    experts = len({i.expert for i in chosen if i.is_expert})
    counted = [f"{n:,} {noun}{'s' * (n != 1)}" for n, noun in ((linears, "linear module"), (experts, "expert")) if n]
    return f"{parameters(params, facts):,} parameters, adapters of rank {params['rank']} for {' and '.join(counted)}"


def estimate(params: Params, inputs: Inputs) -> Cost:
    facts = inputs.checkpoint
    linears = [i for i in targets(params, facts) if not i.is_expert]
    trained = parameters(params, facts)
    how = merges(params, facts)
    disk = facts.nbytes + (4 * trained if how == "keep" else 0)
    cost = training_objective.estimate(params, inputs, trained, disk, _branch_bytes(params, inputs, linears))
    if how != "requantize":
        return cost
    weights = sum(i.size for i in facts.sites)
    again = 4 * weights / inputs.machine.disk_bytes_per_second + 2e3 * weights / inputs.machine.flops
    return replace(cost, scratch=cost.scratch + 2 * weights + facts.nbytes, seconds=cost.seconds + again)


def _branch_bytes(params: Params, inputs: Inputs, linears: list[Site]) -> int:
    """Return the bytes that adapters add to a forward, for the backward pass: those of one layer, or of all.

    They store what their first factor gives, and in bf16 their input once more, which was float32 between. On the heap
    of a CPU, the sum with a module's output in fp32 leaves room of _FREED blocks that no block as large takes; narrower
    ones fit in, and in bf16 what is cast does (measured).
    """
    tokens, narrow = teacher.forward_tokens(params, inputs), params["precision"] != "fp32"
    holes = inputs.machine.device == "cpu" and not narrow
    on_heap = {i.rows for i in linears if holes and heap_share(tokens * 4 * i.rows) > 1}
    layers: dict[int, int] = {}
    for linear in linears:
        stored = 4 * params["rank"] + 2 * linear.columns * narrow
        freed = _FREED * 4 * linear.rows if on_heap and linear.rows == max(on_heap) else 0
        layers[linear.layer] = layers.get(linear.layer, 0) + stored + freed
    held = max(layers.values(), default=0) if params["gradient_checkpointing"] else sum(layers.values())
    return tokens * held


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    facts = inputs.checkpoint
    if merges(params, facts) != "keep":
        return facts
    chosen = targets(params, facts)
    experts = [each.name for each in expert_adapters.parameters(chosen, facts.linears.mixtures)]
    linears = [i.name for i in facts.sites if not i.is_expert]
    names = [i.name for i in chosen if not i.is_expert]
    return replace(facts, adapter=config(params, names, linears, conv1d(facts), experts))


def changes(params: Params, inputs: Inputs) -> Collection[str]:
    """Return the weights that the adapter is merged into; all packed ones where they are quantized again."""
    facts = inputs.checkpoint
    how = merges(params, facts)
    if how == "keep":
        return ()
    if how == "merge":
        return list(dict.fromkeys(site.tensor for site in targets(params, facts)))
    modules = {site.name for site in facts.sites}
    return [name for name in facts.tensors if name.rpartition(".")[0] in modules]


def conv1d(facts: CheckpointFacts) -> bool:
    """Return whether the linears are GPT-2's, which store a dense weight as [in, out]."""
    return facts.config.model_type in supported.CONV1D_TYPES and not facts.quantization


def config(
    params: Params, chosen: list[str], linears: list[str], transposed: bool, experts: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the adapter_config.json of the trained adapter, for modules by their names in the model.

    `experts` are the parameters of experts that are adapted too.
    """
    return adapter_config.config(
        params["rank"],
        params["alpha"],
        adapter_config.targets(chosen, linears),
        rslora=params["variant"] == "rslora",
        dora=params["variant"] == "dora",
        dropout=params["dropout"],
        transposed=transposed,
        parameters=experts,
    )


def run(ctx: Context) -> Result:
    from runner.model.architecture.inspect import of_artifact
    from runner.model.layerwise.streamed_model import StreamedModel
    from runner.training.modules import lora

    source = ctx.inputs["checkpoint"].path
    facts = of_artifact(ctx.inputs["checkpoint"])
    how = merges(ctx.params, facts)
    if how == "requantize":
        requantize.recorded(source)
    streamed = StreamedModel(source)
    names, mixtures = streamed.linear_names(), streamed.mixtures
    streamed.reader.close()
    sites = targets(ctx.params, facts)
    chosen = [names[linear.name] for linear in sites if not linear.is_expert]
    experts = [each.name for each in expert_adapters.parameters(sites, mixtures)]
    adapter = config(ctx.params, chosen, list(names.values()), conv1d(facts), experts)
    arguments = {"adapter": adapter, "hold_packed_zeros": how == "requantize"}
    fitted = training_objective.train(ctx, "runner.training.objectives.recovery:adapters", arguments)
    tensors = lora.read(fitted.weights)
    metrics = {**fitted.metrics, "adapter_parameters": sum(tensor.numel() for tensor in tensors.values())}
    measured, account = _write(ctx, how, adapter, tensors)
    return Result({**metrics, **measured}, {**fitted.details, "merge": how}, account)


def _write(
    ctx: Context, how: str, adapter: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, float], Account | None]:
    """Write the checkpoint; return what quantizing again has measured, and the writer's account."""
    from runner.model.checkpoint import derived
    from runner.model.checkpoint.headers import model_config
    from runner.model.checkpoint.reader import CheckpointReader
    from runner.steps import model_card
    from runner.training import checkpoint_patcher

    source, card = ctx.inputs["checkpoint"].path, model_card.render(ctx)
    if how == "keep":
        result = derived.Derived(
            derived.Patches(),
            config=adapter_config.loadable(model_config(source).raw),
            adapter=derived.Adapter(adapter, tensors),
            card=card,
        )
    else:
        adapted = checkpoint_patcher.Adapted(source, adapter, tensors)
        if how == "requantize":
            folder = ctx.scratch_dir / "merged"
            merged = checkpoint_patcher.dense(adapted, ctx.scratch_dir / "merged-parts", folder)
            again = requantize.run(ctx, folder)
            return again.metrics, again.account.after(merged) if again.account else None
        result = derived.Derived(derived.Patches(adapted.changes()), card=card)
    with CheckpointReader(source) as reader:
        return {}, derived.write(reader, result, ctx.out_dir)

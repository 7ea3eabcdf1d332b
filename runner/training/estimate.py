"""Estimate the cost of a training from the headers of its checkpoint. Imported by the planner: no torch.

The constants are measured. On a CPU with glibc 2.36 the forecasts of whole steps are 1 to 16 % above the peaks of
workers: `recover.lora`, `recover.scales`, `distill.logits`, `distill.features` and `prune.gradual` of the demo model on
4096 tokens, LoRA and distillation also on others, in bf16, and of random Llamas (8 layers of 512, 4 of 1024). That of
LoRA on 2048 tokens of the demo model is 24 % above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from runner.contracts.context import Params
from runner.contracts.facts import CheckpointFacts
from runner.model.layerwise import memory_budget as memory
from runner.system import heap
from runner.system.cpu import fast_bf16
from runner.training.task import settings

if TYPE_CHECKING:
    from runner.contracts.step_kind import Inputs

RUNTIME = 600_000_000  # a process with torch, transformers' Trainer and accelerate, with the first optimizer step done
LOGIT_BYTES = 18  # of every logit of a forward: itself, its float32 copy, the log-softmax, their gradients
_STATE_BYTES = 16  # of a trained parameter: float32 itself, its gradient, two moments of AdamW
_SAVED_BYTES = 12  # of it in a training checkpoint: itself and the moments
_START = 8.0  # seconds until the first step: imports, loading
STREAMS = 4  # how often an activation is read or written, forward and backward
_BANDWIDTH = 1.2e9  # bytes a second of one core, in operations that touch a value once or twice (measured)


class Need(NamedTuple):
    """The fields of runner.contracts.step_kind.Cost: a kind gives `Cost(*estimate(...))`."""

    memory: int
    disk: int
    scratch: int
    seconds: float


def estimate(
    inputs: Inputs,
    params: Params,
    *,
    trained: int,
    disk: int,
    frozen_bytes: int | None = None,
    facts: CheckpointFacts | None = None,
    logit_bytes: float = LOGIT_BYTES,
    extra: int = 0,
) -> Need:
    """Estimate a training on `inputs.data["data"]`.

    trained       parameters that are trained
    disk          bytes of the step's result
    frozen_bytes  bytes in memory of the weights that are not trained; as stored in the checkpoint unless given
    facts         the checkpoint that is trained, where that is not the step's main input
    logit_bytes   for every logit of a forward, more where the loss holds further copies
    extra         further bytes in memory of every process
    """
    model = facts or inputs.checkpoint
    data = inputs.data["data"]
    length = data.sequence_length
    windows = max(1, data.tokens // length)
    own = settings(params, windows, length)
    processes = inputs.processes
    narrow = own.precision == "bf16" or (own.precision == "auto" and _has_bf16(inputs))
    value = 2 if narrow else 4
    weights = memory.layer_weights(model) * model.layer_count + vocabulary_weights(model)
    frozen = max(0, weights - trained)
    if frozen_bytes is None:
        frozen_bytes = round(frozen * model.nbytes / max(1, model.parameters))
    shards = processes if own.fsdp else 1
    tokens = own.batch_size // (own.accumulation * processes) * length
    on_heap = tokens if inputs.machine.device == "cpu" else 0
    stored = _activation_bytes(model, value, own.gradient_checkpointing, on_heap)
    copies = 2 * min(trained, weights) if narrow else 0  # bf16 copies that autocast keeps for one forward
    state = (_STATE_BYTES * trained + frozen_bytes) // shards + copies
    forward = tokens * (stored + vocabulary(model) * logit_bytes)
    peak = processes * int(RUNTIME + state + forward + extra)
    acting = weights - idle_weights(model)
    products = (4 * acting + 2 * min(trained, acting) + 2 * acting * own.gradient_checkpointing) + 2 * trained
    seen = own.steps * own.batch_size * length
    traffic = STREAMS * (memory_of_layer(model, value) * model.layer_count + vocabulary(model) * logit_bytes)
    seconds = seen * (products / inputs.machine.flops + traffic_seconds(traffic, inputs))
    saved = trained * (2 * _SAVED_BYTES + 12)  # two checkpoints, two best states, the result
    return Need(peak, disk, saved + 8 * windows * length + disk, _START * processes + seconds)


def memory_of_layer(facts: CheckpointFacts, value: int, on_heap: int = 0) -> float:
    """Return the bytes per token that one decoder layer stores for the backward; `value` bytes in its products.

    `on_heap` is the number of tokens in a forward whose activations are on the heap of a process; 0: they are not.

    Two norms store their input and output in float32; the products store the inputs and outputs of attention, and four
    rows as wide as the MLP. Every expert that a token is routed to stores its input, and four rows of its own.
    """
    hidden = facts.config.hidden_size
    wide = max((linear.rows for linear in facts.sites), default=4 * hidden)
    mixtures = (each for each in facts.linears.mixtures if each.matrices)
    routed = max((each.active * (hidden + 4 * each.matrices[-1].columns) for each in mixtures), default=0)
    wide = max(wide, memory.widest(facts))
    return (
        4 * 4 * hidden * heap_share(on_heap * 4 * hidden)
        + 6 * value * hidden * heap_share(on_heap * value * hidden)
        + 4 * value * wide * heap_share(on_heap * value * wide)
        + value * routed * heap_share(min(on_heap, 1))  # an expert sees few of the tokens
    )


def heap_share(block: int) -> float:
    """Return the bytes of a process for each byte of stored blocks of this size; 0: they are on no heap of a CPU.

    Those that glibc does not map separately lie between freed ones, which it seldom takes again: memalign asks for more
    than a hole has that a block of the same size left.
    """
    return memory.SUSPENDED_HEAP if 0 < block < heap.MMAP_THRESHOLD else 1


def idle_weights(facts: CheckpointFacts) -> int:
    """Return the weights of experts that a token is not routed to."""
    sizes = ((each, sum(m.rows * m.columns for m in each.matrices)) for each in facts.linears.mixtures if each.active)
    return sum((each.experts - each.active) * size for each, size in sizes)


def vocabulary(facts: CheckpointFacts) -> int:
    return facts.config.vocabulary_size


def vocabulary_weights(facts: CheckpointFacts) -> int:
    """Return the number of weights outside the decoder layers; a tied table counts once."""
    outside = [t for n, t in facts.tensors.items() if not n.startswith(facts.layers_prefix)]
    total = 0
    for tensor in outside:
        count = 1
        for size in tensor.shape:
            count *= size
        total += count
    return total


def _activation_bytes(facts: CheckpointFacts, value: int, checkpointing: bool, on_heap: int) -> float:
    """Return the bytes per token of the activations that are in memory at once, over all layers."""
    layer = memory_of_layer(facts, value, on_heap)
    if checkpointing:
        kept = 4 * facts.config.hidden_size
        return facts.layer_count * kept * heap_share(on_heap * kept) + layer
    return facts.layer_count * layer


def _has_bf16(inputs: Inputs) -> bool:
    """Return whether `precision: auto` will be bf16 here."""
    if inputs.machine.device == "cuda":
        return "T4" not in (inputs.machine.gpu_name or "") and "V100" not in (inputs.machine.gpu_name or "")
    return fast_bf16()


def traffic_seconds(bytes_: float, inputs: Inputs) -> float:
    """Return the seconds that moving a token's activations takes."""
    machine = inputs.machine
    return bytes_ / (5e11 if machine.device == "cuda" else _BANDWIDTH * machine.cpus)

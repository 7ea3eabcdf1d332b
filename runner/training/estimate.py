"""What a training takes, from the headers of its checkpoint. Imported by the planner: no torch.

The constants are measured: on the demo model the forecast of memory is within an eighth for batches of 4 to 16 windows
of 512 tokens, in fp32 and bf16, of all weights and of a few, with and without checkpointed activations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from runner.contracts.context import Params
from runner.contracts.facts import CheckpointFacts
from runner.model.architecture import config
from runner.model.layerwise import memory_budget as memory
from runner.system.cpu import fast_bf16
from runner.training.task import settings

if TYPE_CHECKING:
    from runner.contracts.step_kind import Inputs

RUNTIME = 530_000_000  # a process with torch, transformers' Trainer and accelerate, with the first optimizer step done
LOGIT_BYTES = 18  # for every logit of a forward: itself, its float32 copy, the log-softmax, their gradients
_STATE_BYTES = 16  # of a trained parameter: float32 itself, its gradient, two moments of AdamW
_SAVED_BYTES = 12  # of it in a training checkpoint: itself and the moments
_START = 8.0  # seconds until the first step: imports, loading
_STREAMS = 4  # times that an activation is read or written, forward and backward
_BANDWIDTH = 1.2e9  # bytes a second that one core streams, of operations that touch a value once or twice (measured)


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
    """A training on `inputs.data["data"]`.

    trained       parameters that are trained
    disk          bytes of what the step writes in the end
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
    held = _held(model, value, own.gradient_checkpointing)
    copies = 2 * min(trained, weights) if narrow else 0  # bf16 copies that autocast keeps for one forward
    state = (_STATE_BYTES * trained + frozen_bytes) // shards + copies
    forward = tokens * (held + vocabulary(model) * logit_bytes)
    peak = processes * int(RUNTIME + state + forward + extra)
    products = (4 * weights + 2 * min(trained, weights) + 2 * weights * own.gradient_checkpointing) + 2 * trained
    seen = own.steps * own.batch_size * length
    traffic = _STREAMS * (memory_of_layer(model, value) * model.layer_count + vocabulary(model) * logit_bytes)
    seconds = seen * (products / inputs.machine.flops + _traffic_seconds(traffic, inputs))
    saved = trained * (2 * _SAVED_BYTES + 12)  # two checkpoints, two best states, the result
    return Need(peak, disk, saved + 8 * windows * length + disk, _START * processes + seconds)


def memory_of_layer(facts: CheckpointFacts, value: int) -> int:
    """Bytes that one decoder layer keeps of a token for the way back; `value` bytes in its products.

    Two norms keep their input and what they make of it in float32; the products keep what goes into attention, out of
    it, and four rows as wide as the MLP.
    """
    hidden = config.hidden_size(facts.config)
    wide = max((linear.rows for linear in facts.sites), default=4 * hidden)
    return 4 * hidden * 4 + (6 * hidden + 4 * max(wide, memory.widest(facts))) * value


def vocabulary(facts: CheckpointFacts) -> int:
    return int(config.text_config(facts.config).get("vocab_size") or 0)


def vocabulary_weights(facts: CheckpointFacts) -> int:
    """Weights outside the decoder layers; a tied table counts once."""
    outside = [t for n, t in facts.tensors.items() if not n.startswith(facts.layers_prefix)]
    total = 0
    for tensor in outside:
        count = 1
        for size in tensor.shape:
            count *= size
        total += count
    return total


def _held(facts: CheckpointFacts, value: int, checkpointing: bool) -> int:
    """Bytes of a token that are held at once over all layers."""
    layer = memory_of_layer(facts, value)
    if checkpointing:
        return facts.layer_count * config.hidden_size(facts.config) * 4 + layer
    return facts.layer_count * layer


def _has_bf16(inputs: Inputs) -> bool:
    """Whether `precision: auto` will be bf16 here."""
    if inputs.machine.device == "cuda":
        return "T4" not in (inputs.machine.gpu_name or "") and "V100" not in (inputs.machine.gpu_name or "")
    return fast_bf16()


def _traffic_seconds(bytes_: float, inputs: Inputs) -> float:
    """Seconds that a token's activations take to move; a GPU's memory is some hundred times as fast."""
    machine = inputs.machine
    return bytes_ / (5e11 if machine.device == "cuda" else _BANDWIDTH * machine.cpus)

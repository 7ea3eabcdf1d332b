"""What streaming takes, from a checkpoint's headers alone: the planner forecasts with it and the stream obeys it."""

from __future__ import annotations

import math

from runner.contracts.facts import CheckpointFacts
from runner.model.checkpoint.stored_types import is_half, stored_type
from runner.system.cpu import fast_bf16

RUNTIME = 470 << 20  # a process with torch and one model class imported, with its thread pools (measured)
WEIGHTS_RUNTIME = 300 << 20  # the same without transformers
CUDA_RUNTIME = 1300 << 20  # and what a GPU adds: CUDA's libraries, pinned batches (measured)
SUSPEND_LIMIT = 1 << 30  # bytes of suspended forwards that are held rather than computed again, at least
SUSPENDED_HEAP = 1.75  # bytes of the heap that one of them takes on a CPU: they lie between freed ones (measured)
LOGIT_BYTES = 64 << 20  # float32 logits held at once


def batch_tokens(device: str, widest: int) -> int:
    """Tokens of one forward of layers whose widest linear has that many columns; fixed for a model, because how tokens

    are batched moves the last bit of a product. On a CPU so few that what an operation makes is still in the caches,
    and in pages that the heap has, when the next one reads it (measured: with 768 columns 2048 tokens take a twentieth
    less time than 1024 or 4096, with 8192 columns 1024 do).
    """
    if device != "cpu":
        return 4096
    return 2048 if widest <= 1024 else 1024


def widest(facts: CheckpointFacts) -> int:
    """The most columns any linear of the decoder layers has."""
    return max((linear.columns for linear in facts.sites), default=facts.config.hidden_size)


def compute_bytes(facts: CheckpointFacts, device: str) -> int:
    """Bytes of a value in the forward: the stored type, but on a CPU float32 unless it multiplies bf16 faster."""
    half = is_half(facts) if device != "cpu" else stored_type(facts) == "bfloat16" and fast_bf16()
    return 2 if half else 4


def suspended_bytes(tokens: int, hidden: int, widest: int, value: int, lanes: int) -> int:
    """Bytes that forwards of `tokens` tokens hold while they wait: the residual, its normed copy, the widest input."""
    return tokens * (2 * hidden + widest) * value * lanes


def suspend_limit(device_memory: int) -> int:
    """Bytes of suspended forwards that are held: on a GPU, of `device_memory` bytes, a quarter of what it has."""
    return max(SUSPEND_LIMIT, device_memory // 4)


def batch_bytes(facts: CheckpointFacts, length: int, value: int, device: str) -> int:
    """Bytes of the intermediates of one running batch: a few rows as wide as the widest linear, and attention."""
    tokens = max(batch_tokens(device, widest(facts)), length)
    outs = max((linear.rows for linear in facts.sites), default=0)
    return tokens * (3 * max(outs, widest(facts)) + 6 * facts.config.hidden_size) * value


def layer_bytes(facts: CheckpointFacts, value: int) -> int:
    """Bytes of one dense decoder layer in the forward's type."""
    return max(layer_weights(facts) * value, 0 if facts.quantization else facts.layer_nbytes())


def changed_layer_bytes(facts: CheckpointFacts, value: int, copies: int = 2) -> int:
    """Bytes of one decoder layer while it is changed: of its experts no more than one is there, in so many `copies`."""
    if not any(site.is_expert for site in facts.sites):
        return layer_bytes(facts, value)
    rest = [0] * facts.layer_count
    one: dict[str, int] = {}
    for site in facts.sites:
        if site.is_expert:
            one[site.expert] = one.get(site.expert, 0) + site.size
        else:
            rest[site.layer] += site.size * value
    return max(rest) + copies * max(one.values()) * value


def layer_weights(facts: CheckpointFacts) -> int:
    """The most weights that the linears of one layer have."""
    sizes = [0] * max(1, facts.layer_count)
    for linear in facts.sites:
        sizes[linear.layer] += linear.size
    return max(sizes)


def rest_bytes(facts: CheckpointFacts, value: int) -> int:
    """Bytes of everything outside the decoder layers, with `value` bytes a weight."""
    outside = (t for n, t in facts.tensors.items() if not n.startswith(facts.layers_prefix))
    return sum(math.prod(tensor.shape) for tensor in outside) * value

"""Writes a random mixture of experts (Qwen3-MoE) of any size, one tensor at a time.

    python -m benchmarks.random_mixture 15x64 /tmp/models/twelve-gigabytes   # 12.4 GB
    python -m benchmarks.random_mixture 2x64 /tmp/models/two-layers

The name is LAYERSxEXPERTS; hidden size 2048, experts of 1024, 8 of them for each token, each stored in tensors of its
own. Tokenizer and weights are as in `benchmarks.random_llama`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.random_llama import VOCABULARY, write_random

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD, ACTIVE = 2048, 1024, 16, 4, 128, 8


def config(layers: int, experts: int) -> dict[str, object]:
    """config.json of a Qwen3-MoE of which every layer is a mixture."""
    return {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "moe_intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
        "num_experts": experts, "num_experts_per_tok": ACTIVE, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def shapes(layers: int, experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of every tensor, in the order in which they are written."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            yield f"{prefix}self_attn.{name}_proj.weight", (heads * HEAD, HIDDEN)
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD)
        yield prefix + "self_attn.q_norm.weight", (HEAD,)
        yield prefix + "self_attn.k_norm.weight", (HEAD,)
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,)
        yield prefix + "mlp.gate.weight", (experts, HIDDEN)
        for expert in range(experts):
            for name in ("gate_proj", "up_proj"):
                yield f"{prefix}mlp.experts.{expert}.{name}.weight", (INTERMEDIATE, HIDDEN)
            yield f"{prefix}mlp.experts.{expert}.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="LAYERSxEXPERTS, such as 15x64")
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=2_000_000_000)
    args = parser.parse_args(argv)
    layers, _, experts = args.size.partition("x")
    if not (layers.isdigit() and experts.isdigit() and int(layers) and int(experts) >= ACTIVE):
        raise SystemExit(f"size must be LAYERSxEXPERTS with at least {ACTIVE} experts; got {args.size!r}")
    tensors = list(shapes(int(layers), int(experts)))
    total = write_random(args.folder, config(int(layers), int(experts)), tensors, args.seed, args.shard_bytes)
    print(f"{args.folder}: {total / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

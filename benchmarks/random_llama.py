"""Writes a random Llama of any size, one tensor at a time, so that the file may be larger than memory.

    python -m benchmarks.random_llama 12x512 /tmp/models/12x512
    python -m benchmarks.random_llama 50x2048 /tmp/models/six-gigabytes      # 6.1 GB in shards of 2 GB
    python -m benchmarks.random_llama 64x512 /tmp/models/deep

The name is LAYERSxHIDDEN; a width has its own intermediate size and heads (`WIDTHS`). The tokenizer is that of
`demo:tiny-llama`, so that every tool reads the same text as the same tokens. Weights are bf16, normal with a deviation
of 0.02, and the same for the same name and seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.tokens import TINY_LLAMA

VOCABULARY = 4096
HEAD = 64
CHUNK = 4 << 20  # elements made at a time


@dataclass(frozen=True)
class Width:
    intermediate: int
    heads: int
    kv_heads: int


WIDTHS = {
    256: Width(768, 4, 2),
    512: Width(1408, 8, 8),
    1024: Width(2816, 16, 16),
    2048: Width(8192, 32, 8),
    4096: Width(14336, 64, 16),
}


def config(layers: int, hidden: int) -> dict[str, object]:
    """config.json: that of the demo model in another size, embeddings tied."""
    width = WIDTHS[hidden]
    base: dict[str, object] = json.loads((TINY_LLAMA / "config.json").read_text())
    return base | {
        "hidden_size": hidden,
        "intermediate_size": width.intermediate,
        "num_attention_heads": width.heads,
        "num_key_value_heads": width.kv_heads,
        "head_dim": HEAD,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
    }


def shapes(layers: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of every tensor, in the order in which they are written."""
    width = WIDTHS[hidden]
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (width.heads * HEAD, hidden)
        yield prefix + "self_attn.k_proj.weight", (width.kv_heads * HEAD, hidden)
        yield prefix + "self_attn.v_proj.weight", (width.kv_heads * HEAD, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, width.heads * HEAD)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (width.intermediate, hidden)
        yield prefix + "mlp.up_proj.weight", (width.intermediate, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, width.intermediate)
    yield "model.norm.weight", (hidden,)


def elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def bf16(values: np.ndarray) -> bytes:
    """float32 → the bytes of bfloat16, little-endian, by truncation (rounding matters to no random weight)."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def chunks(shape: tuple[int, ...], seed: int, index: int) -> Iterator[bytes]:
    """The bytes of one tensor: ones for a norm, normal numbers for a matrix."""
    total = elements(shape)
    if len(shape) == 1:
        yield bf16(np.ones(total))
        return
    rng = np.random.default_rng([seed, index])
    for start in range(0, total, CHUNK):
        yield bf16(rng.standard_normal(min(CHUNK, total - start), dtype=np.float32) * np.float32(0.02))


def split(tensors: list[tuple[str, tuple[int, ...]]], limit: int) -> list[list[tuple[int, str, tuple[int, ...]]]]:
    """(index, name, shape) of each shard; a shard holds at most `limit` bytes, or a single tensor."""
    shards: list[list[tuple[int, str, tuple[int, ...]]]] = [[]]
    room = limit
    for index, (name, shape) in enumerate(tensors):
        size = 2 * elements(shape)
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append((index, name, shape))
        room -= size
    return shards


def write(folder: Path, layers: int, hidden: int, seed: int = 0, shard_bytes: int = 2_000_000_000) -> int:
    """Write the checkpoint into `folder`, which is made; returns the bytes of its tensors."""
    return write_random(folder, config(layers, hidden), list(shapes(layers, hidden)), seed, shard_bytes)


def write_random(
    folder: Path, config: Mapping[str, object], tensors: list[tuple[str, tuple[int, ...]]], seed: int, shard_bytes: int
) -> int:
    """Write random tensors of these shapes, in their order, with a config.json; returns their bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY_LLAMA / name, folder / name)
    shards = split(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    total = 0
    for number, held in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for _, name, shape in held:
            end = offset + 2 * elements(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            weight_map[name] = file
            offset = end
        total += offset
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for index, _, shape in held:
                out.writelines(chunks(shape, seed, index))
    if len(shards) > 1:
        index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=2) + "\n")
    return total


def parse_size(name: str) -> tuple[int, int]:
    """ "12x512" → (12, 512); SystemExit with the widths that exist otherwise."""
    layers, _, hidden = name.partition("x")
    if not (layers.isdigit() and hidden.isdigit() and int(layers) and int(hidden) in WIDTHS):
        raise SystemExit(f"size must be LAYERSxHIDDEN with HIDDEN one of {', '.join(map(str, WIDTHS))}; got {name!r}")
    return int(layers), int(hidden)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="LAYERSxHIDDEN, such as 12x512")
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=2_000_000_000)
    args = parser.parse_args(argv)
    layers, hidden = parse_size(args.size)
    total = write(args.folder, layers, hidden, args.seed, args.shard_bytes)
    print(f"{args.folder}: {total / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""AWQ by llm-compressor, then rounding to nearest, for comparison. It runs in the peer's own environment.

Version 0.14 pins what it caches, which fails on machines without a GPU; there pinning, which changes no value, is left
out.

    PEER/bin/python benchmarks/peers/llmcompressor_awq.py MODEL TOKENS.npy OUT --bits 4 --group-size 128
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcompressor_oneshot import arguments, compress, integers


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--asymmetric", action="store_true")
    args = parser.parse_args()

    def modifiers() -> Sequence[Any]:
        import torch
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier
        from llmcompressor.pipelines.cache import IntermediatesCache

        if not torch.accelerator.is_available():
            IntermediatesCache.pin_memory = lambda *_: None
        groups = integers(args.bits, args.group_size, not args.asymmetric)
        return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])]

    compress(args, modifiers)


if __name__ == "__main__":
    main()

"""GPTQ by llm-compressor, for comparison. It runs in the peer's own environment.

PEER/bin/python benchmarks/peers/llmcompressor_gptq.py MODEL TOKENS.npy OUT --bits 4 --group-size 128
PEER/bin/python benchmarks/peers/llmcompressor_gptq.py MODEL TOKENS.npy OUT --scheme NVFP4
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcompressor_oneshot import arguments, compress, integers


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--scheme", help="a scheme of llm-compressor's, such as NVFP4 or W8A8, instead of the two")
    args = parser.parse_args()

    def modifiers() -> Sequence[Any]:
        from llmcompressor.modifiers.gptq import GPTQModifier

        if args.scheme:
            return [GPTQModifier(targets=["Linear"], scheme=args.scheme, ignore=["lm_head"])]
        return [GPTQModifier(config_groups=integers(args.bits, args.group_size, True), ignore=["lm_head"])]

    compress(args, modifiers)


if __name__ == "__main__":
    main()

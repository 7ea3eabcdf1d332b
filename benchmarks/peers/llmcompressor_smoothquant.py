"""SmoothQuant and INT8 by llm-compressor, for comparison. It runs in the peer's own environment.

PEER/bin/python benchmarks/peers/llmcompressor_smoothquant.py MODEL TOKENS.npy OUT --alpha 0.5 --solver gptq
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcompressor_oneshot import arguments, compress


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--alpha", type=float, default=0.5, help="0.5 is llm-compressor's default")
    parser.add_argument("--solver", choices=("gptq", "rounding"), default="gptq")
    args = parser.parse_args()

    def modifiers() -> Sequence[Any]:
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        solver = GPTQModifier if args.solver == "gptq" else QuantizationModifier
        smooth = SmoothQuantModifier(smoothing_strength=args.alpha)
        return [smooth, solver(targets=["Linear"], scheme="W8A8", ignore=["lm_head"])]

    compress(args, modifiers)


if __name__ == "__main__":
    main()

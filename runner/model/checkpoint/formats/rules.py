"""What the on-disk formats of quantized weights can hold, and what they hold it in. Imports no torch.

pack-quantized  compressed-tensors; read by transformers and, at 4 and 8 bits, by vLLM
gptq            GPTQ checkpoints; read by gptqmodel, transformers with gptqmodel and optimum, and vLLM
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

PACK_QUANTIZED = "pack-quantized"
GPTQ = "gptq"
FORMATS = (PACK_QUANTIZED, GPTQ)

GPTQ_BITS = (2, 3, 4, 8)
GPTQ_GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True, order=True)
class Scheme:
    """How one weight is quantized. `group_size` is in columns of a row, or "channel" (a row), or "tensor"."""

    bits: int
    group_size: int | str
    symmetric: bool

    @property
    def strategy(self) -> str:
        return self.group_size if isinstance(self.group_size, str) else "group"

    def columns(self, in_features: int) -> int:
        """Columns that share a scale."""
        return in_features if isinstance(self.group_size, str) else self.group_size

    def groups(self, in_features: int) -> int:
        return ceil_div(in_features, self.columns(in_features))

    def describe(self) -> str:
        """ "4-bit, symmetric, groups of 128"; for model cards and messages."""
        shared = {"channel": "per channel", "tensor": "per tensor"}.get(self.strategy, f"groups of {self.group_size}")
        return f"{self.bits}-bit, {'symmetric' if self.symmetric else 'asymmetric'}, {shared}"


def validate(
    format: str, scheme: Scheme, in_features: int, out_features: int, transposed: bool = False
) -> tuple[str, str] | None:
    """Why a weight cannot be stored: (what is wrong, remedy), phrases that follow the module's name. None: it can.

    `transposed` marks GPT-2's Conv1D modules. compressed-tensors does not know them: transformers would load such a
    checkpoint with those weights left random. As `gptq` they load with gptqmodel's own loader, not through
    transformers 5.23, whose initialization of GPT-2 stumbles over any packed module.
    """
    group = scheme.group_size
    if isinstance(group, int) and in_features % group:
        divisors = [g for g in (16, 32, 64, 128, 256, 512, 1024) if in_features % g == 0]
        other = f"group_size {' or '.join(map(str, divisors[-3:]))}" if divisors else 'group_size: "channel"'
        return f"has {in_features} columns, which group_size {group} does not divide", f"use {other}"
    if format == PACK_QUANTIZED:
        if transposed:
            return (
                "is a Conv1D module, which compressed-tensors cannot load",
                "use `format: gptq`, which gptqmodel loads, or a kind that keeps weights dense",
            )
        if not 2 <= scheme.bits <= 8:
            return f"has {scheme.bits} bits, which `pack-quantized` cannot store", "use 2 to 8 bits"
        return None
    if format != GPTQ:
        return f"asks for the unknown format `{format}`", f"use {' or '.join(FORMATS)}"
    if scheme.bits not in GPTQ_BITS:
        return (
            f"has {scheme.bits} bits, which `gptq` cannot store",
            "use 2, 3, 4 or 8 bits, or `format: pack-quantized`",
        )
    if isinstance(group, int) and group not in GPTQ_GROUP_SIZES and group != in_features:
        allowed = ", ".join(map(str, GPTQ_GROUP_SIZES))
        return (
            f"has group_size {group}, which readers of `gptq` refuse",
            f'use group_size {allowed} or "channel", or `format: pack-quantized`',
        )
    # GPTQ packs the weight along its inputs and the zero points along its outputs, in whole 32-bit words.
    unit = 32 if scheme.bits == 3 else 32 // scheme.bits
    for size, what in ((in_features, "columns"), (out_features, "rows")):
        if size % unit:
            return (
                f"has {size} {what}; `gptq` at {scheme.bits} bits packs them by {unit}",
                "use `format: pack-quantized` or add it to `ignore`",
            )
    return None


def packs_zero_points(scheme: Scheme) -> bool:
    """Whether pack-quantized stores the zero points of a scheme packed."""
    return not scheme.symmetric and scheme.strategy != "tensor"


def validate_together(format: str, schemes: Iterable[Scheme]) -> tuple[str, str] | None:
    """Why transformers cannot load these schemes in one checkpoint: (what is wrong, remedy). None: it can.

    pack-quantized  asymmetric weights load only dequantized, and that path of transformers 5.23 reads every module with
                    the first scheme of the checkpoint; vLLM reads each with its own
    gptq            transformers knows no per-module schemes there; gptqmodel's own loader and vLLM do
    """
    found = set(schemes)
    if format == GPTQ:
        if len({(scheme.bits, gptq_group_size(scheme)) for scheme in found}) > 1:
            return (
                "transformers reads `gptq` checkpoints with one scheme for all modules",
                "use `format: pack-quantized`, drop `overrides`, or load the result with gptqmodel or vLLM",
            )
    elif len(found) > 1 and any(packs_zero_points(scheme) for scheme in found):
        return (
            "transformers cannot load asymmetric weights beside weights of another scheme",
            "use `symmetric: true` everywhere, or one scheme for all modules",
        )
    return None


def gptq_group_size(scheme: Scheme) -> int:
    """The group size as GPTQ configurations write it: −1 for a whole row."""
    return -1 if isinstance(scheme.group_size, str) else scheme.group_size


def scale_dtype(format: str, model_dtype: str) -> str:
    """The safetensors dtype in which scales are stored, given that of the weights ("BF16", "F16", "F32").

    transformers loads scales of compressed-tensors in the model's own dtype; gptqmodel keeps them in fp16 buffers.
    """
    if format == GPTQ:
        return "F16"
    return model_dtype if model_dtype in ("BF16", "F16", "F32") else "F32"


def stored_tensors(
    format: str, module: str, scheme: Scheme, out_features: int, in_features: int, model_dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors that `pack` writes for a module: name → (safetensors dtype, shape). For the planner's forecasts."""
    scale, groups = scale_dtype(format, model_dtype), scheme.groups(in_features)
    if format == GPTQ:
        return {
            f"{module}.g_idx": ("I32", (in_features,)),
            f"{module}.qweight": ("I32", (ceil_div(in_features * scheme.bits, 32), out_features)),
            f"{module}.qzeros": ("I32", (groups, ceil_div(out_features * scheme.bits, 32))),
            f"{module}.scales": (scale, (groups, out_features)),
        }
    whole = scheme.strategy == "tensor"
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{module}.weight_packed": ("I32", (out_features, ceil_div(in_features * scheme.bits, 32))),
        f"{module}.weight_scale": (scale, (1,) if whole else (out_features, groups)),
        f"{module}.weight_shape": ("I64", (2,)),
    }
    if not scheme.symmetric:
        # Readers expect a single zero point of a whole tensor as it is, all others packed along the rows.
        tensors[f"{module}.weight_zero_point"] = (
            ("I8", (1,)) if whole else ("I32", (ceil_div(out_features * scheme.bits, 32), groups))
        )
    return tensors


def served_by_vllm(format: str, scheme: Scheme) -> bool:
    """Whether vLLM has kernels for the scheme."""
    if format == GPTQ:
        return scheme.bits in GPTQ_BITS
    return scheme.bits in (4, 8) and scheme.strategy != "tensor"


def scheme_from_config(weights: dict[str, Any]) -> Scheme:
    """A Scheme from the `weights` mapping of a compressed-tensors config group."""
    size = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:  # as compressed-tensors infers it
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    group_size = int(size or 0) if strategy == "group" else str(strategy)
    return Scheme(int(weights.get("num_bits", 8)), group_size, bool(weights.get("symmetric", True)))

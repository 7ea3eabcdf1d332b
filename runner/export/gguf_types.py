"""The types of a GGUF file's tensors: how large, and which tensor of a model gets which (llama-quant.cpp of llama.cpp).

Imported by the planner: no torch, no gguf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Type → columns of a block, bytes of a block (ggml-common.h).
SIZES: Mapping[str, tuple[int, int]] = {
    "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22),
    "q5_1": (32, 24), "q8_0": (32, 34), "iq4_nl": (32, 18), "q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144),
    "q5_k": (256, 176), "q6_k": (256, 210),
}  # fmt: skip
FLOATS = ("f32", "f16", "bf16")
UNEVEN = ("iq4_nl",)  # levels of a table
AUTO = "auto"  # in place of `dense`: the type of each matrix follows from a budget
# What a tensor gets whose columns the blocks of its type do not divide, and where those of that do not: f16.
FALLBACKS = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
# Named mixtures of types: their base type. Other names of `dense` are types.
MIXTURES = {
    "q2_k": "q2_k", "q2_k_s": "q2_k", "q3_k_s": "q3_k", "q3_k_m": "q3_k", "q3_k_l": "q3_k", "q4_k_s": "q4_k",
    "q4_k_m": "q4_k", "q5_k_s": "q5_k", "q5_k_m": "q5_k",
}  # fmt: skip
# llama_ftype, which a file says of itself
FILE_TYPES = {
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q4_0": "MOSTLY_Q4_0", "q4_1": "MOSTLY_Q4_1",
    "q5_0": "MOSTLY_Q5_0", "q5_1": "MOSTLY_Q5_1", "q8_0": "MOSTLY_Q8_0", "iq4_nl": "MOSTLY_IQ4_NL",
    "q2_k": "MOSTLY_Q2_K", "q2_k_s": "MOSTLY_Q2_K_S", "q3_k": "MOSTLY_Q3_K_M", "q3_k_s": "MOSTLY_Q3_K_S",
    "q3_k_m": "MOSTLY_Q3_K_M", "q3_k_l": "MOSTLY_Q3_K_L", "q4_k": "MOSTLY_Q4_K_M", "q4_k_s": "MOSTLY_Q4_K_S",
    "q4_k_m": "MOSTLY_Q4_K_M", "q5_k": "MOSTLY_Q5_K_M", "q5_k_s": "MOSTLY_Q5_K_S", "q5_k_m": "MOSTLY_Q5_K_M",
    "q6_k": "MOSTLY_Q6_K",
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """What the choice of types depends on: layers, query heads per head of keys, experts of a layer (0: no mixture),

    and whether columns are weighed by calibration.
    """

    layers: int
    grouped: int
    experts: int = 0
    calibrated: bool = False


def layer_type(dense: str, tensor: str, layer: int, model: Model) -> str:
    """Return the type of a matrix of a layer, named as after "blk.N." (llama_tensor_get_type_impl)."""
    base = MIXTURES.get(dense, dense)
    if base in FLOATS or base == "q8_0" or base == AUTO:
        return base
    if tensor == "attn_v":
        chosen = _values(dense, base, layer, model)
        return "q8_0" if model.experts == 8 else chosen
    if tensor == "attn_k":
        return "q8_0" if model.experts == 8 else base
    if tensor.startswith("ffn_down"):
        return _down(dense, base, layer, model)
    if tensor == "attn_output":
        if model.experts == 8:
            return "q5_k" if dense in ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl") else base
        return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(dense, base)
    if tensor == "attn_qkv":
        fused = {"q3_k_m": "q4_k", "q3_k_l": "q4_k", "q4_k_m": "q5_k", "q5_k_m": "q6_k"}.get(dense, base)
        return fused if dense != "q2_k" else _values(dense, base, layer, model)
    return base


def head_type(dense: str) -> str:
    """Return the type of the output matrix, and of the embedding where they are one."""
    base = MIXTURES.get(dense, dense)
    return base if base in FLOATS or base == "q8_0" else "q6_k"


def fitting(type: str, columns: int) -> str:
    """Return the type for rows of so many columns: itself, or what llama.cpp falls back to; of AUTO the largest."""
    if type == AUTO:
        return "q8_0" if columns % SIZES["q8_0"][0] == 0 else "f16"
    for each in (type, FALLBACKS.get(type, "f16")):
        if columns % SIZES[each][0] == 0:
            return each
    return "f16"


def nbytes(type: str, weights: int) -> int:
    """Return the bytes of so many weights."""
    block, size = SIZES[type]
    return weights // block * size


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _values(dense: str, base: str, layer: int, model: Model) -> str:
    if dense in ("q2_k", "q2_k_s") and model.grouped >= 4:
        return "q4_k"
    if dense in ("q4_k_m", "q5_k_m") and _more_bits(layer, model.layers):
        return "q6_k"
    if dense == "q4_k_s" and layer < 4:
        return "q5_k"
    if dense == "iq4_nl" and model.grouped >= 4:
        return "q5_k"
    early = "q5_k" if layer < 2 else "q4_k"
    return {"q2_k": "q3_k", "q3_k_m": early, "q3_k_l": "q5_k"}.get(dense, base)


def _down(dense: str, base: str, layer: int, model: Model) -> str:
    first = layer < model.layers // 8
    if dense in ("q4_k_m", "q5_k_m") and _more_bits(layer, model.layers):
        return "q6_k"
    if dense == "q3_k_m":
        return "q5_k" if layer < model.layers // 16 else "q4_k"
    if first and dense in ("q2_k_s", "q4_k_s"):
        return "q4_k" if dense == "q2_k_s" else "q5_k"
    if first and dense == "iq4_nl" and not model.calibrated:
        return "q5_k"
    if first and model.calibrated and dense in ("q4_0", "q5_0"):
        return "q4_1" if dense == "q4_0" else "q5_1"
    return {"q2_k": "q3_k", "q3_k_l": "q5_k"}.get(dense, base)

"""bitsandbytes' 4-bit codebooks, nf4 and fp4: a float32 scale for each 64 values of a row.

weight                uint8 [n / 2, 1]: two codes a byte, the first in its high half
weight.absmax         float32 [n / 64]: the scales
weight.quant_map      float32 [16]: the value of each code
weight.quant_state.bitsandbytes__nf4   JSON as uint8: quant_type, blocksize, dtype (to which readers unpack) and shape

Its kernels take the values of codes from `quant_type` and read no other table from `quant_map` (bitsandbytes 0.50,
backends/default/ops.py), so that no further codebook can be stored so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint.quantization.codebooks import CODEBOOKS
from runner.model.checkpoint.quantization.format import Config, Headers, Matrix, Read, Reader, Refusal, Rules
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.stored_types import NAMES

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

NAME = "bitsandbytes"
TAG = "bitsandbytes"
WEIGHT = "weight"
SCALE = "weight.absmax"
FILES: tuple[str, ...] = ()
STATE = ".quant_state.bitsandbytes__"  # follows the name of the weight, and is followed by that of the codebook
TYPES = ("nf4", "fp4")
BLOCK = 64
COMPUTE = "bnb_4bit_compute_dtype"


def holds(tensors: Headers, module: str) -> bool:
    weight = tensors.get(f"{module}.{WEIGHT}")
    return weight is not None and weight.dtype == "U8" and f"{module}.{SCALE}" in tensors


def parse(config: Config) -> Rules | None:
    """Raises ValueError for its 8-bit integers, and for scales that are quantized in turn."""
    if config.get("quant_method") != NAME:
        return None
    if not config.get("load_in_4bit") or config.get("bnb_4bit_use_double_quant"):
        raise ValueError("of bitsandbytes only 4 bits with float32 scales can be read")
    return Rules(default=PRESETS[config.get("bnb_4bit_quant_type", "fp4")])


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    raise ValueError(f"the shape of `{module}` stands in its `quant_state`")


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    if scheme not in (PRESETS[name] for name in TYPES):
        problem = f"is to be stored as {scheme.describe()}; `{NAME}` holds nf4 and fp4 in groups of {BLOCK}"
        return Refusal(problem, "use `scheme: nf4` or `scheme: fp4`")
    if matrix.transposed:
        problem = f"is a Conv1D module, which readers of `{NAME}` cannot load"
        return Refusal(problem, "use a kind that keeps weights dense")
    if matrix.columns % BLOCK:
        problem = f"has {matrix.columns} columns, which groups of {BLOCK} do not divide"
        return Refusal(problem, "add it to `ignore` or use another scheme")
    return None


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    if len(set(schemes)) > 1:
        return Refusal(f"`{NAME}` checkpoints have one codebook for all modules", "drop `overrides`")
    return None


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    return "F32"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    element, size = scheme.weights.element, matrix.rows * matrix.columns
    state = _state(element, (matrix.rows, matrix.columns), NAMES[weight_dtype])
    return {
        f"{module}.weight": ("U8", (size // 2, 1)),
        f"{module}.weight.absmax": ("F32", (size // BLOCK,)),
        f"{module}.weight.quant_map": ("F32", (16,)),
        f"{module}.weight{STATE}{element}": ("U8", (len(state),)),
    }


def _state(element: str, shape: tuple[int, int], dtype: str) -> bytes:
    """The part of a weight's state that is no tensor, in bitsandbytes' own spelling."""
    return json.dumps({"quant_type": element, "blocksize": BLOCK, "dtype": dtype, "shape": shape}).encode()


def read_state(text: bytes) -> dict[str, Any]:
    """The inverse of `_state`, whoever wrote it. ValueError where it is not understood."""
    try:
        state = json.loads(text)
        if state["blocksize"] >= 2 and len(state["shape"]) == 2:
            return dict(state)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError("is stored by bitsandbytes with a `quant_state` that is not understood")


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    """Readers unpack to, and multiply in, the type at COMPUTE: `checkpoint_config` puts that of the weights there."""
    found = set(schemes.values())
    if len(found) != 1:
        raise ValueError(f"`{NAME}` checkpoints have one codebook for all modules")
    return {
        "quant_method": NAME,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": found.pop().weights.element,
        "bnb_4bit_use_double_quant": False,
        COMPUTE: "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": sorted({*untouched, "lm_head"} - set(schemes)),
    }


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    return (
        Reader("transformers", "bitsandbytes accelerate", tried="bitsandbytes 0.50"),
        Reader("vLLM", limit="vLLM 0.32 knows no bitsandbytes."),
    )


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    import torch

    element = weight.numbers.element
    state = _state(element, (weight.out_features, weight.in_features), config[COMPUTE])
    return {
        f"{module}.weight": pack_codes(weight.codes),
        f"{module}.weight.absmax": store_scale(weight),
        f"{module}.weight.quant_map": torch.tensor(values(element)),
        f"{module}.weight{STATE}{element}": torch.frombuffer(bytearray(state), dtype=torch.uint8),
    }


def values(element: str) -> list[float]:
    """The value of each code."""
    table = CODEBOOKS[element]
    return [level for _, level in sorted(zip(table.codes, table.levels, strict=True))]


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [out, in], each below 16 → uint8 [out · in / 2, 1], the first in the high half."""
    flat = codes.reshape(-1, 2)
    return (flat[:, :1] << 4) | flat[:, 1:]


def unpack_codes(packed: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape → uint8 [2 n]: the inverse of `pack_codes`, flat."""
    import torch

    halves = packed.reshape(-1)
    return torch.stack([halves >> 4, halves & 15], 1).reshape(-1)


def store_scale(weight: Quantized) -> torch.Tensor:
    return weight.scale.float().reshape(-1)


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

    element = scheme.weights.element
    state = read_state(read(f"{module}.weight{STATE}{element}").numpy().tobytes())
    if state["blocksize"] != BLOCK or state["quant_type"] != element:
        raise ValueError(f"it has blocks of {state['blocksize']} values of {state['quant_type']}")
    if not torch.equal(read(f"{module}.weight.quant_map").float(), torch.tensor(values(element))):
        raise ValueError(f"its `quant_map` is not that of {element}")
    rows, columns = state["shape"]
    codes = unpack_codes(read(f"{module}.weight"))
    if codes.numel() != math.prod(state["shape"]) or columns % BLOCK:
        raise ValueError(f"{codes.numel()} codes are no matrix of {rows} × {columns} in groups of {BLOCK}")
    scale = read(f"{module}.weight.absmax").float().view(rows, columns // BLOCK)
    return Quantized(codes.view(rows, columns), scale, None, scheme.weights)

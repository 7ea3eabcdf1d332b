"""8-bit floats in blocks of 128 × 128, as DeepSeek and Qwen publish their models (quant_method "fp8" of transformers).

weight            float8_e4m3 [out, in]
weight_scale_inv  float32 [⌈out / 128⌉, in / 128]: it is multiplied with, whatever its name says

Published checkpoints of this kind are read by `runner.model.checkpoint.unpacking.fp8`, as the dense ones that they
stand for; this module is for those that a step made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint.quantization.format import Config, Headers, Matrix, Read, Reader, Refusal, Rules
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.scheme import Scheme

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

NAME = "fp8"
TAG = "fp8"
WEIGHT = "weight"
SCALE = "weight_scale_inv"
FILES: tuple[str, ...] = ()
SCHEME = PRESETS["fp8_block"]
BLOCK = 128


def holds(tensors: Headers, module: str) -> bool:
    weight = tensors.get(f"{module}.{WEIGHT}")
    return weight is not None and weight.dtype == "F8_E4M3" and f"{module}.{SCALE}" in tensors


def parse(config: Config) -> Rules | None:
    """Raises ValueError for other blocks, and for inputs with calibrated scales."""
    if config.get("quant_method") != NAME:
        return None
    block, inputs = config["weight_block_size"], config.get("activation_scheme", "dynamic")
    if list(block or ()) != [BLOCK, BLOCK] or inputs != "dynamic":
        raise ValueError(
            f"8-bit floats in blocks of {block} with {inputs} scales of inputs cannot be read; a dense checkpoint is "
            "needed"
        )
    return Rules(default=SCHEME)


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    rows, columns = tensors[f"{module}.{WEIGHT}"].shape
    return rows, columns


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    """transformers 5.23 takes the rows of a block to be those of the matrix divided by the number of scales."""
    if scheme != SCHEME:
        problem = f"is to be stored as {scheme.describe()}; `{NAME}` holds {SCHEME.describe()}"
        return Refusal(problem, "use `scheme: fp8_block`")
    if matrix.transposed:
        return Refusal("is a Conv1D module, which readers of `fp8` do not know", "use a kind that keeps weights dense")
    if matrix.columns % BLOCK:
        problem = f"has {matrix.columns} columns, which groups of {BLOCK} inputs do not divide"
        return Refusal(problem, "use `scheme: fp8` or add it to `ignore`")
    if matrix.rows > BLOCK and matrix.rows % BLOCK:
        problem = f"has {matrix.rows} rows, which blocks of {BLOCK} do not divide: transformers reads others"
        return Refusal(problem, "use `scheme: fp8` or add it to `ignore`")
    return None


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    return None


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    return "F32"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        f"{module}.{WEIGHT}": ("F8_E4M3", (matrix.rows, matrix.columns)),
        f"{module}.{SCALE}": ("F32", scheme.weights.scale_shape(matrix.rows, matrix.columns)),
    }


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    rest = {*untouched, "lm_head"} - set(schemes)
    return {
        "quant_method": NAME, "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": sorted(rest),
    }  # fmt: skip


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    note = (
        "transformers rounds inputs on GPUs from compute capability 8.9 on; elsewhere it unpacks the weights as it "
        "loads them, and leaves inputs as they are."
    )
    return (Reader("transformers", tried="transformers 5.23", note=note), Reader("vLLM", fuses=True))


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    import torch

    return {
        f"{module}.{WEIGHT}": weight.codes.view(torch.float8_e4m3fn),
        f"{module}.{SCALE}": store_scale(weight),
    }


def store_scale(weight: Quantized) -> torch.Tensor:
    return weight.scale.float().contiguous()


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

    stored = read(f"{module}.{WEIGHT}")
    rows, columns = stored.shape
    scale = read(f"{module}.{SCALE}").reshape(scheme.weights.scale_shape(rows, columns))
    return Quantized(stored.view(torch.uint8), scale, None, scheme.weights)

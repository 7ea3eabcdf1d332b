"""compressed-tensors "mxfp4-pack-quantized": 4-bit floats in groups of 32, whose scales are powers of two (OCP MXFP4).

weight_packed  uint8 [out, in / 2]: two codes of E2M1 in a byte, the even column in the low half
weight_scale   uint8 [out, in / 32]: the exponents of the scales, plus 127
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint.quantization import compressed_tensors_config, group_sizes
from runner.model.checkpoint.quantization.format import Config, Headers, Matrix, Read, Reader, Refusal, Rules
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.scheme import Scheme

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

NAME = "mxfp4-pack-quantized"
TAG = "compressed-tensors"
WEIGHT = "weight_packed"
SCALE = "weight_scale"
FILES: tuple[str, ...] = ()
WEIGHTS = PRESETS["mxfp4a16"].weights
INPUTS = (None, PRESETS["mxfp4"].activations)


def holds(tensors: Headers, module: str) -> bool:
    weight = tensors.get(f"{module}.{WEIGHT}")
    return weight is not None and weight.dtype == "U8" and f"{module}.weight_global_scale" not in tensors


def parse(config: Config) -> Rules | None:
    return compressed_tensors_config.parse(config, NAME, WEIGHTS)


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    rows, pairs = tensors[f"{module}.{WEIGHT}"].shape
    return rows, 2 * pairs


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    if scheme.weights != WEIGHTS or scheme.activations not in INPUTS:
        problem = f"is to be stored as {scheme.describe()}; `{NAME}` holds {WEIGHTS.describe()}"
        return Refusal(problem, "use `scheme: mxfp4` or `scheme: mxfp4a16`")
    return group_sizes.refuse_small_float(scheme, matrix, NAME, "mxfp4a16")


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    return None


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    return "U8"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        f"{module}.weight_packed": ("U8", (matrix.rows, matrix.columns // 2)),
        f"{module}.weight_scale": ("U8", (matrix.rows, scheme.groups(matrix.columns))),
    }


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    return compressed_tensors_config.write(NAME, schemes, untouched, act_order=act_order)


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    return (
        compressed_tensors_config.TRANSFORMERS,
        Reader("vLLM", fuses=True),
    )


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    from runner.model.checkpoint.quantization.bit_packing import pack_nibbles

    return {f"{module}.weight_packed": pack_nibbles(weight.codes), f"{module}.weight_scale": store_scale(weight)}


def store_scale(weight: Quantized) -> torch.Tensor:
    import torch

    return weight.scale.contiguous().view(torch.uint8)


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    import torch

    from runner.model.checkpoint.quantization.bit_packing import unpack_nibbles
    from runner.model.checkpoint.quantization.quantized import Quantized

    scale = read(f"{module}.weight_scale").view(torch.float8_e8m0fnu)
    return Quantized(unpack_nibbles(read(f"{module}.weight_packed")), scale, None, scheme.weights)

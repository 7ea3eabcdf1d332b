"""compressed-tensors "nvfp4-pack-quantized": 4-bit floats in groups of 16, whose 8-bit scales share one of the tensor.

weight_packed        uint8 [out, in / 2]: two codes of E2M1 in a byte, the even column in the low half
weight_scale         float8_e4m3 [out, in / 16]
weight_global_scale  float32 [1]: what the scales are divided by
input_global_scale   float32 [1], where inputs are rounded too: what the scales of their groups are divided by
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

NAME = "nvfp4-pack-quantized"
TAG = "compressed-tensors"
WEIGHT = "weight_packed"
SCALE = "weight_scale"
FILES: tuple[str, ...] = ()
WEIGHTS = PRESETS["nvfp4a16"].weights
INPUTS = (None, PRESETS["nvfp4"].activations)


def holds(tensors: Headers, module: str) -> bool:
    weight = tensors.get(f"{module}.{WEIGHT}")
    return weight is not None and weight.dtype == "U8" and f"{module}.weight_global_scale" in tensors


def parse(config: Config) -> Rules | None:
    return compressed_tensors_config.parse(config, NAME, WEIGHTS)


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    rows, pairs = tensors[f"{module}.{WEIGHT}"].shape
    return rows, 2 * pairs


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    if scheme.weights != WEIGHTS or scheme.activations not in INPUTS:
        problem = f"is to be stored as {scheme.describe()}; `{NAME}` holds {WEIGHTS.describe()}"
        return Refusal(problem, "use `scheme: nvfp4` or `scheme: nvfp4a16`")
    return group_sizes.refuse_small_float(scheme, matrix, NAME, "nvfp4a16")


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    return None


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    return "F8_E4M3"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{module}.weight_packed": ("U8", (matrix.rows, matrix.columns // 2)),
        f"{module}.weight_scale": ("F8_E4M3", (matrix.rows, scheme.groups(matrix.columns))),
        f"{module}.weight_global_scale": ("F32", (1,)),
    }
    return {**found, f"{module}.input_global_scale": ("F32", (1,))} if scheme.calibrated else found


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    return compressed_tensors_config.write(NAME, schemes, untouched, act_order=act_order)


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    """vLLM multiplies 4-bit floats on GPUs from compute capability 10.0 on, and unpacks them to 16 bits below."""
    return (
        compressed_tensors_config.TRANSFORMERS,
        Reader("vLLM", fuses=True),
    )


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    from runner.model.checkpoint.quantization.bit_packing import pack_nibbles

    if weight.global_scale is None:
        raise ValueError(f"`{NAME}` holds scales of two levels")
    packed = {
        f"{module}.weight_packed": pack_nibbles(weight.codes),
        f"{module}.weight_scale": store_scale(weight),
        f"{module}.weight_global_scale": weight.global_scale,
    }
    return packed if weight.input_scale is None else {**packed, f"{module}.input_global_scale": weight.input_scale}


def store_scale(weight: Quantized) -> torch.Tensor:
    return weight.scale.contiguous()


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return read(f"{module}.input_global_scale").reshape(1) if scheme.calibrated else None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    from runner.model.checkpoint.quantization.bit_packing import unpack_nibbles
    from runner.model.checkpoint.quantization.quantized import Quantized

    return Quantized(
        codes=unpack_nibbles(read(f"{module}.weight_packed")),
        scale=read(f"{module}.weight_scale"),
        zero_point=None,
        numbers=scheme.weights,
        global_scale=read(f"{module}.weight_global_scale").reshape(1),
        input_scale=input_scale(module, scheme, read),
    )

"""compressed-tensors "int-quantized": 8-bit integers, one a byte.

weight             int8 [out, in], around zero
weight_scale       [out, G]; [1] for a whole tensor
input_scale        [1], where inputs have a calibrated scale
weight_zero_point  asymmetric only: int8 like the scale, less 128
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint import servers
from runner.model.checkpoint.quantization import compressed_tensors_config
from runner.model.checkpoint.quantization.format import Config, Headers, Matrix, Read, Reader, Refusal, Rules
from runner.model.checkpoint.quantization.scheme import Scheme

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

NAME = "int-quantized"
TAG = "compressed-tensors"
WEIGHT = "weight"
SCALE = "weight_scale"
FILES: tuple[str, ...] = ()


def holds(tensors: Headers, module: str) -> bool:
    weight = tensors.get(f"{module}.{WEIGHT}")
    return weight is not None and weight.dtype == "I8" and f"{module}.{SCALE}" in tensors


def parse(config: Config) -> Rules | None:
    return compressed_tensors_config.parse(config, NAME)


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    rows, columns = tensors[f"{module}.{WEIGHT}"].shape
    return rows, columns


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    """Groups and fewer bits could be stored, but nothing serves them so; `pack-quantized` is smaller."""
    if not scheme.weights.is_integer or scheme.bits != 8:
        return Refusal(f"is to be stored as {scheme.weights.describe()}; `{NAME}` holds 8-bit integers", "use 8 bits")
    if scheme.strategy not in ("channel", "tensor"):
        return Refusal(f"has {scheme.weights.describe()}; `{NAME}` has no groups", 'use group_size: "channel"')
    return compressed_tensors_config.refuse_conv1d(matrix)


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    return None


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    """transformers loads scales of compressed-tensors in the model's own dtype."""
    return weight_dtype if weight_dtype in ("BF16", "F16", "F32") else "F32"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    extent = (1,) if scheme.strategy == "tensor" else (matrix.rows, scheme.groups(matrix.columns))
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{module}.weight": ("I8", (matrix.rows, matrix.columns)),
        f"{module}.weight_scale": (scale_dtype(scheme, weight_dtype), extent),
    }
    if scheme.calibrated:
        found[f"{module}.input_scale"] = (scale_dtype(scheme, weight_dtype), (1,))
    return found if scheme.symmetric else {**found, f"{module}.weight_zero_point": ("I8", extent)}


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    return compressed_tensors_config.write(NAME, schemes, untouched, act_order=act_order)


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    """vLLM multiplies int8 weights with inputs that are int8 too; weights alone have no kernel in this layout."""
    limit = servers.limit("vllm", NAME, schemes)
    return (
        compressed_tensors_config.TRANSFORMERS,
        Reader("vLLM", limit=limit, fuses=True),
    )


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    import torch

    whole = weight.strategy == "tensor"

    def signed(codes: torch.Tensor) -> torch.Tensor:
        return (codes.to(torch.int16) - 128).to(torch.int8).contiguous()

    stored = {
        f"{module}.weight": signed(weight.codes),
        f"{module}.weight_scale": store_scale(weight),
    }
    if weight.input_scale is not None:
        stored[f"{module}.input_scale"] = weight.input_scale
    if weight.zero_point is not None:
        zero = signed(weight.zero_point)
        stored[f"{module}.weight_zero_point"] = zero.reshape(1) if whole else zero
    return stored


def store_scale(weight: Quantized) -> torch.Tensor:
    return weight.scale.reshape(1) if weight.strategy == "tensor" else weight.scale.contiguous()


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return read(f"{module}.input_scale").reshape(1) if scheme.calibrated else None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

    stored = read(f"{module}.weight")
    rows, columns = stored.shape
    middle = 2 ** (scheme.bits - 1)
    extent = scheme.weights.scale_shape(rows, columns)
    zero = None
    if not scheme.symmetric:
        zero = (read(f"{module}.weight_zero_point").to(torch.int16) + middle).to(torch.uint8).reshape(extent)
    codes = (stored.to(torch.int16) + middle).to(torch.uint8)
    scale = read(f"{module}.weight_scale").reshape(extent)
    return Quantized(codes, scale, zero, scheme.weights, input_scale=input_scale(module, scheme, read))

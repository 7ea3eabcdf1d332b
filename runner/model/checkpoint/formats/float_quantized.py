"""compressed-tensors "float-quantized": 8-bit floats.

weight        float8_e4m3 [out, in]
input_scale   [1], where inputs have a calibrated scale
weight_scale  [out, G]; [1] for a whole tensor; [⌈out / r⌉, ⌈in / c⌉] for blocks of r × c
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.contracts.facts import TensorHeader
from runner.model.checkpoint.quantization import compressed_tensors_config
from runner.model.checkpoint.quantization.format import Config, Headers, Matrix, Read, Reader, Refusal, Rules
from runner.model.checkpoint.quantization.scheme import Scheme

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

NAME = "float-quantized"
TAG = "compressed-tensors"
WEIGHT = "weight"
SCALE = "weight_scale"
FILES: tuple[str, ...] = ()


def holds(tensors: Headers, module: str) -> bool:
    weight, scale = tensors.get(f"{module}.{WEIGHT}"), tensors.get(f"{module}.{SCALE}")
    return weight is not None and weight.dtype == "F8_E4M3" and _is_scale(weight, scale)


def _is_scale(weight: TensorHeader, scale: TensorHeader | None) -> bool:
    """Exponents are those of mxfp8-quantized; scales of rows in one dimension those of modelopt."""
    if scale is None or scale.dtype == "U8":
        return False
    return len(scale.shape) == 2 or scale.shape == (1,)


def parse(config: Config) -> Rules | None:
    return compressed_tensors_config.parse(config, NAME)


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    rows, columns = tensors[f"{module}.{WEIGHT}"].shape
    return rows, columns


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    """Groups could be stored, but nothing serves them."""
    if scheme.weights.element != "float8_e4m3":
        problem = f"is to be stored as {scheme.weights.describe()}; `{NAME}` holds float8_e4m3"
        return Refusal(problem, "use `scheme: fp8` or `scheme: fp8_block`")
    if scheme.strategy not in ("channel", "tensor", "block"):
        return Refusal(f"has {scheme.weights.describe()}; `{NAME}` has no groups", "use `scheme: fp8`")
    if conv1d := compressed_tensors_config.refuse_conv1d(matrix):
        return conv1d
    inputs = scheme.activations
    if inputs is not None and isinstance(inputs.layout, int) and matrix.columns % inputs.layout:
        problem = f"has {matrix.columns} columns, which groups of {inputs.layout} inputs do not divide"
        return Refusal(problem, "use `scheme: fp8` or add it to `ignore`")
    return None


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    return None


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    """transformers loads scales of compressed-tensors in the model's own dtype."""
    return weight_dtype if weight_dtype in ("BF16", "F16", "F32") else "F32"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    shape = scheme.weights.scale_shape(matrix.rows, matrix.columns)
    extent = (1,) if scheme.strategy == "tensor" else shape
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{module}.weight": ("F8_E4M3", (matrix.rows, matrix.columns)),
        f"{module}.weight_scale": (scale_dtype(scheme, weight_dtype), extent),
    }
    if scheme.calibrated:
        found[f"{module}.input_scale"] = (scale_dtype(scheme, weight_dtype), (1,))
    return found


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    return compressed_tensors_config.write(NAME, schemes, untouched, act_order=act_order)


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    """vLLM multiplies 8-bit floats on GPUs from compute capability 8.9 on, and unpacks them to 16 bits below."""
    return (
        compressed_tensors_config.TRANSFORMERS,
        Reader("vLLM", fuses=True),
    )


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    import torch

    stored = {
        f"{module}.weight": weight.codes.view(torch.float8_e4m3fn),
        f"{module}.weight_scale": store_scale(weight),
    }
    return stored if weight.input_scale is None else {**stored, f"{module}.input_scale": weight.input_scale}


def store_scale(weight: Quantized) -> torch.Tensor:
    return weight.scale.reshape(1) if weight.strategy == "tensor" else weight.scale.contiguous()


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return read(f"{module}.input_scale").reshape(1) if scheme.calibrated else None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

    stored = read(f"{module}.weight")
    rows, columns = stored.shape
    scale = read(f"{module}.weight_scale").reshape(scheme.weights.scale_shape(rows, columns))
    return Quantized(
        stored.view(torch.uint8), scale, None, scheme.weights, input_scale=input_scale(module, scheme, read)
    )

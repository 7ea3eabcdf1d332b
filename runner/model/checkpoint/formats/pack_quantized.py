"""compressed-tensors "pack-quantized": integers of 2 to 8 bits, packed in 32-bit words.

weight_packed      int32 [out, ⌈in·bits/32⌉], the stored integers 0..2^bits − 1 along the columns
weight_scale       [out, G]; [1] for a whole tensor
weight_shape       int64 [2]
weight_zero_point  asymmetric only: int32 [⌈out·bits/32⌉, G] packed along the rows; int8 [1], less 2^(bits−1), for
                   a whole tensor
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint import servers
from runner.model.checkpoint.quantization import compressed_tensors_config, group_sizes
from runner.model.checkpoint.quantization.format import Config, Headers, Matrix, Read, Reader, Refusal, Rules
from runner.model.checkpoint.quantization.scheme import Scheme, ceil_div

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

NAME = "pack-quantized"
TAG = "compressed-tensors"
WEIGHT = "weight_packed"
SCALE = "weight_scale"
FILES: tuple[str, ...] = ()


def holds(tensors: Headers, module: str) -> bool:
    weight = tensors.get(f"{module}.{WEIGHT}")
    return weight is not None and weight.dtype == "I32"


def parse(config: Config) -> Rules | None:
    return compressed_tensors_config.parse(config, NAME)


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    rows, words = tensors[f"{module}.{WEIGHT}"].shape
    return rows, words * 32 // scheme.bits  # up to a word too many; `weight_shape` holds the exact number


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    if not scheme.weights.is_integer:
        problem = f"is to be stored as {scheme.weights.describe()}; `{NAME}` holds integers"
        return Refusal(problem, "use a scheme of integers")
    if scheme.calibrated:
        return Refusal(
            f"is to be stored as {scheme.describe()}; `{NAME}` holds no scales of inputs", "leave out `format`"
        )
    if _packs_zero_points(scheme) and scheme.activations is not None:
        # Dequantized while it is loaded, a module is an ordinary one in transformers; vLLM has no kernel.
        problem = f"is to be stored as {scheme.describe()}; with zero points, readers of `{NAME}` do not round inputs"
        return Refusal(problem, "use `symmetric: true`")
    if uneven := group_sizes.refuse_uneven(scheme, matrix):
        return uneven
    return compressed_tensors_config.refuse_conv1d(matrix)


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    """Asymmetric weights load only dequantized, and that path of transformers 5.23 reads every module with the first

    scheme of the checkpoint; vLLM reads each with its own.
    """
    found = set(schemes)
    if len(found) > 1 and any(map(_packs_zero_points, found)):
        return Refusal(
            "transformers cannot load asymmetric weights beside weights of another scheme",
            "use `symmetric: true` everywhere, or one scheme for all modules",
        )
    return None


def _packs_zero_points(scheme: Scheme) -> bool:
    return not scheme.symmetric and scheme.strategy != "tensor"


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    """transformers loads scales of compressed-tensors in the model's own dtype."""
    return weight_dtype if weight_dtype in ("BF16", "F16", "F32") else "F32"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    rows, columns = matrix.rows, matrix.columns
    whole, groups = scheme.strategy == "tensor", scheme.groups(columns)
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{module}.weight_packed": ("I32", (rows, ceil_div(columns * scheme.bits, 32))),
        f"{module}.weight_scale": (scale_dtype(scheme, weight_dtype), (1,) if whole else (rows, groups)),
        f"{module}.weight_shape": ("I64", (2,)),
    }
    if not scheme.symmetric:
        # Readers expect a single zero point of a whole tensor as it is, all others packed along the rows.
        zero_point = ("I8", (1,)) if whole else ("I32", (ceil_div(rows * scheme.bits, 32), groups))
        found[f"{module}.weight_zero_point"] = zero_point
    return found


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    # Loading compressed, transformers expects zero points that are not packed (compressed-tensors 0.20 leaves
    # them so when it compresses the empty model) and stops; loading dequantized, it takes them as they are.
    dequantize = any(map(_packs_zero_points, schemes.values()))
    return compressed_tensors_config.write(NAME, schemes, untouched, act_order=act_order, dequantize=dequantize)


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    """vLLM has kernels for 4 and 8 bits, and none for a scale of a whole tensor."""
    limit = servers.limit("vllm", NAME, schemes)
    return (
        compressed_tensors_config.TRANSFORMERS,
        Reader("vLLM", tried="0.32", limit=limit, fuses=True),
    )


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    import torch

    from runner.model.checkpoint.quantization.bit_packing import pack_rows

    whole = weight.strategy == "tensor"
    packed = {
        f"{module}.weight_packed": pack_rows(weight.codes, weight.bits),
        f"{module}.weight_scale": store_scale(weight),
        f"{module}.weight_shape": torch.tensor([weight.out_features, weight.in_features], dtype=torch.int64),
    }
    if weight.zero_point is not None:
        if whole:
            zero = (weight.zero_point.to(torch.int16) - 2 ** (weight.bits - 1)).to(torch.int8).reshape(1)
        else:
            zero = pack_rows(weight.zero_point.t().contiguous(), weight.bits).t().contiguous()
        packed[f"{module}.weight_zero_point"] = zero
    return packed


def store_scale(weight: Quantized) -> torch.Tensor:
    return weight.scale.reshape(1) if weight.strategy == "tensor" else weight.scale.contiguous()


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    import torch

    from runner.model.checkpoint.quantization.bit_packing import unpack_rows
    from runner.model.checkpoint.quantization.quantized import Quantized

    rows, columns = (int(size) for size in read(f"{module}.weight_shape"))
    zero = None
    if not scheme.symmetric:
        stored = read(f"{module}.weight_zero_point")
        if scheme.strategy == "tensor":
            zero = (stored.to(torch.int16) + 2 ** (scheme.bits - 1)).to(torch.uint8).reshape(1, 1)
        else:
            zero = unpack_rows(stored.t(), scheme.bits, rows).t().contiguous()
    codes = unpack_rows(read(f"{module}.weight_packed"), scheme.bits, columns)
    scale = read(f"{module}.weight_scale")
    scale = scale.reshape(1, 1) if scheme.strategy == "tensor" else scale.reshape(rows, -1)
    return Quantized(codes, scale, zero, scheme.weights)

"""AWQ checkpoints in the layout of AutoAWQ's "gemm" kernels: 4-bit integers with zero points, in groups.

qweight  int32 [in, out / 8], packed along the outputs in AutoAWQ's order: 0 2 4 6 1 3 5 7 of each eight
qzeros   int32 [G, out / 8], packed likewise
scales   fp16 [G, out]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint.quantization import group_sizes
from runner.model.checkpoint.quantization.format import Config, Headers, Matrix, Read, Reader, Refusal, Rules
from runner.model.checkpoint.quantization.scheme import Scheme, integers

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

NAME = "awq"
TAG = "awq"
WEIGHT = "qweight"
SCALE = "scales"
FILES: tuple[str, ...] = ()
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PACKED = 8  # values in a word


def holds(tensors: Headers, module: str) -> bool:
    """Unlike GPTQ's tensors of the same names, a word of its own holds values of eight outputs."""
    weight, scale = tensors.get(f"{module}.{WEIGHT}"), tensors.get(f"{module}.{SCALE}")
    return weight is not None and scale is not None and scale.shape[-1] == PACKED * weight.shape[-1]


def parse(config: Config) -> Rules | None:
    """Raises ValueError for layouts of other kernels."""
    if config.get("quant_method") != NAME:
        return None
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm" or int(config.get("bits", 4)) != 4:
        raise ValueError(f"the awq layout `{version}` of {config.get('bits', 4)} bits cannot be read")
    size = int(config.get("group_size", 128))
    return Rules(default=integers(4, "channel" if size == -1 else size, False))


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    columns, words = tensors[f"{module}.{WEIGHT}"].shape
    return words * PACKED, columns


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    if not scheme.is_integer or scheme.bits != 4 or scheme.symmetric or scheme.strategy != "group":
        problem = f"is to be stored as {scheme.describe()}; `{NAME}` holds 4-bit integers with zero points, in groups"
        return Refusal(problem, "use `bits: 4`, `symmetric: false` and a group size")
    if uneven := group_sizes.refuse_uneven(scheme, matrix):
        return uneven
    if matrix.transposed:
        return Refusal("is a Conv1D module, which readers of `awq` cannot load", "use a kind that keeps weights dense")
    if matrix.rows % PACKED:
        return Refusal(f"has {matrix.rows} rows; `{NAME}` packs them by {PACKED}", "add it to `ignore`")
    return None


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    if len(set(schemes)) > 1:
        return Refusal("`awq` checkpoints have one scheme for all modules",
                       "drop `overrides`, or use `format: pack-quantized`")  # fmt: skip
    return None


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    """AutoAWQ's kernels take fp16."""
    return "F16"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    groups, words = scheme.groups(matrix.columns), matrix.rows // PACKED
    return {
        f"{module}.qweight": ("I32", (matrix.columns, words)),
        f"{module}.qzeros": ("I32", (groups, words)),
        f"{module}.scales": ("F16", (groups, matrix.rows)),
    }


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    """Readers leave alone every module whose name contains one of `modules_to_not_convert`."""
    found = set(schemes.values())
    if len(found) != 1:
        raise ValueError("`awq` checkpoints have one scheme for all modules")
    (scheme,) = found
    return {
        "quant_method": NAME,
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": sorted({*untouched, "lm_head"} - set(schemes)),
    }


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    return (Reader("transformers", "gptqmodel"), Reader("vLLM", fuses=True))


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    if weight.zero_point is None:
        raise ValueError("`awq` holds zero points")
    return {
        f"{module}.qweight": _pack(weight.codes.t()),
        f"{module}.qzeros": _pack(weight.zero_point.t()),
        f"{module}.scales": store_scale(weight),
    }


def _pack(values: torch.Tensor) -> torch.Tensor:
    """uint8 [R, out] → int32 [R, out / 8]."""
    from runner.model.checkpoint.quantization.bit_packing import pack_rows

    return pack_rows(values.reshape(len(values), -1, PACKED)[..., list(ORDER)].flatten(1), 4)


def unpack_words(packed: torch.Tensor) -> torch.Tensor:
    """int32 [R, out / 8] → uint8 [R, out]."""
    from runner.model.checkpoint.quantization.bit_packing import unpack_rows

    rows, words = packed.shape
    values = unpack_rows(packed, 4, words * PACKED).view(rows, words, PACKED)
    return values[..., [ORDER.index(place) for place in range(PACKED)]].flatten(1)


def store_scale(weight: Quantized) -> torch.Tensor:
    import torch

    return weight.scale.t().to(torch.float16).contiguous()


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    """A zero point is what it is: AutoAWQ adds none to it."""
    from runner.model.checkpoint.quantization.quantized import Quantized

    codes = unpack_words(read(f"{module}.qweight")).t().contiguous()
    zero = unpack_words(read(f"{module}.qzeros")).t().contiguous()
    return Quantized(codes, read(f"{module}.scales").t().contiguous(), zero, scheme.weights)

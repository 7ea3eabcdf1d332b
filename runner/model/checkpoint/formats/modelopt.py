"""NVIDIA ModelOpt's checkpoints: NVFP4, and 8-bit floats with a scale for each row.

NVFP4
    weight          uint8 [out, in / 2], as in nvfp4-pack-quantized
    weight_scale    float8_e4m3 [out, in / 16]
    weight_scale_2  float32 []: what the scales are multiplied by
    input_scale     float32 []: what the scales of the inputs' groups are multiplied by
FP8_PER_CHANNEL_PER_TOKEN
    weight          float8_e4m3 [out, in]
    weight_scale    float32 [out]

The same configuration stands in config.json and hf_quant_config.json: vLLM reads either, TensorRT-LLM the latter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runner.model.checkpoint.quantization import group_sizes
from runner.model.checkpoint.quantization.format import Config, Headers, Matrix, Read, Reader, Refusal, Rules
from runner.model.checkpoint.quantization.presets import PRESETS
from runner.model.checkpoint.quantization.scheme import Scheme

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

NAME = "modelopt"
TAG = "modelopt"
WEIGHT = "weight"
SCALE = "weight_scale"
FILES: tuple[str, ...] = ("hf_quant_config.json",)
ALGORITHMS = {"NVFP4": PRESETS["nvfp4"], "FP8_PER_CHANNEL_PER_TOKEN": PRESETS["fp8"]}


def holds(tensors: Headers, module: str) -> bool:
    """Its scales of rows have one dimension, those of float-quantized two (or one number)."""
    weight, scale = tensors.get(f"{module}.{WEIGHT}"), tensors.get(f"{module}.{SCALE}")
    if weight is None or scale is None:
        return False
    if weight.dtype == "U8":
        return f"{module}.weight_scale_2" in tensors
    return weight.dtype == "F8_E4M3" and scale.shape == weight.shape[:1] and weight.shape[0] > 1


def parse(config: Config) -> Rules | None:
    """Raises ValueError for an algorithm whose numbers are not known here."""
    if config.get("quant_method") != NAME:
        return None
    own = config.get("quantization") or config
    algorithm = str(own["quant_algo"])
    if algorithm not in ALGORITHMS:
        raise ValueError(f"weights that ModelOpt stores as {algorithm} cannot be read; a dense checkpoint is needed")
    left_out = own.get("exclude_modules") or own.get("ignore") or []
    return Rules(exact=tuple((_pattern(name), None) for name in left_out), default=ALGORITHMS[algorithm])


def _pattern(name: str) -> str:
    """A name of `exclude_modules`, in which * stands for anything, as a regular expression."""
    return f"^{re.escape(name)}$".replace(r"\*", ".*")


def shape(tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
    weight = tensors[f"{module}.{WEIGHT}"]
    rows, columns = weight.shape
    return rows, columns * (2 if weight.dtype == "U8" else 1)


def refuse(scheme: Scheme, matrix: Matrix) -> Refusal | None:
    if scheme not in ALGORITHMS.values():
        problem = f"is to be stored as {scheme.describe()}; `{NAME}` holds {' and '.join(ALGORITHMS)}"
        return Refusal(problem, "use `scheme: nvfp4` or `scheme: fp8`")
    if matrix.transposed:
        return Refusal(
            "is a Conv1D module, which readers of `modelopt` do not know", "use a kind that keeps weights dense"
        )
    return group_sizes.refuse_uneven(scheme, matrix)


def refuse_together(schemes: Iterable[Scheme]) -> Refusal | None:
    if len(set(schemes)) > 1:
        return Refusal("`modelopt` checkpoints are written with one scheme for all modules",
                       "drop `overrides`, or leave out `format`")  # fmt: skip
    return None


def scale_dtype(scheme: Scheme, weight_dtype: str) -> str:
    return "F8_E4M3" if scheme.weights.two_level else "F32"


def tensors(module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    if not scheme.weights.two_level:
        return {
            f"{module}.weight": ("F8_E4M3", (matrix.rows, matrix.columns)),
            f"{module}.weight_scale": ("F32", (matrix.rows,)),
        }
    return {
        f"{module}.weight": ("U8", (matrix.rows, matrix.columns // 2)),
        f"{module}.weight_scale": ("F8_E4M3", (matrix.rows, scheme.groups(matrix.columns))),
        f"{module}.weight_scale_2": ("F32", ()),
        f"{module}.input_scale": ("F32", ()),
    }


def config(schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False) -> dict[str, Any]:
    found = set(schemes.values())
    if len(found) != 1:
        raise ValueError("`modelopt` checkpoints are written with one scheme for all modules")
    (scheme,) = found
    algorithm = next(name for name, each in ALGORITHMS.items() if each == scheme)
    own: dict[str, Any] = {"quant_algo": algorithm, "kv_cache_quant_algo": None}
    if isinstance(scheme.group_size, int):
        own["group_size"] = scheme.group_size
    own["exclude_modules"] = sorted({*untouched, "lm_head"} - set(schemes))
    return {"quant_method": NAME, "producer": {"name": NAME, "version": "0.47.0"}, "quantization": own}


def readers(schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
    load = (
        "from pathlib import Path\n\nfrom runner.model.checkpoint.reader import CheckpointReader\n\n"
        'reader = CheckpointReader(Path("{folder}"))'
    )
    return (
        Reader("transformers", limit="transformers does not know ModelOpt's checkpoints."),
        Reader("runner", "runner", load=load),
        Reader("vLLM", fuses=True),
    )


def pack(module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
    import torch

    from runner.model.checkpoint.quantization.bit_packing import pack_nibbles

    if weight.global_scale is None:
        codes = weight.codes.view(torch.float8_e4m3fn)
        return {f"{module}.weight": codes, f"{module}.weight_scale": store_scale(weight)}
    if weight.input_scale is None:
        raise ValueError(f"NVFP4 of `{NAME}` needs the scale of inputs")
    return {
        f"{module}.weight": pack_nibbles(weight.codes),
        f"{module}.weight_scale": store_scale(weight),
        f"{module}.weight_scale_2": weight.global_scale.reciprocal().reshape(()),
        f"{module}.input_scale": weight.input_scale.reciprocal().reshape(()),
    }


def store_scale(weight: Quantized) -> torch.Tensor:
    return weight.scale.contiguous() if weight.global_scale is not None else weight.scale.float().reshape(-1)


def input_scale(module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
    return read(f"{module}.input_scale").reciprocal().reshape(1) if scheme.calibrated else None


def unpack(module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
    import torch

    from runner.model.checkpoint.quantization.bit_packing import unpack_nibbles
    from runner.model.checkpoint.quantization.quantized import Quantized

    weight, scale = read(f"{module}.weight"), read(f"{module}.weight_scale")
    if not scheme.weights.two_level:
        return Quantized(weight.view(torch.uint8), scale.reshape(-1, 1), None, scheme.weights)
    return Quantized(
        codes=unpack_nibbles(weight),
        scale=scale,
        zero_point=None,
        numbers=scheme.weights,
        global_scale=read(f"{module}.weight_scale_2").reciprocal().reshape(1),
        input_scale=input_scale(module, scheme, read),
    )

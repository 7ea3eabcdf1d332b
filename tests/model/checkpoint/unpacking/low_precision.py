"""Checkpoints in low precision, as their owners store them, made of a tiny dense one. Returns with each the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
Tensors = dict[str, torch.Tensor]


def fp8(name: str, weight: torch.Tensor, height: int = 24) -> tuple[Tensors, torch.Tensor]:
    """Blocks of `height` × 16, 24 not dividing the rows: the numbers by a loop over blocks."""
    rows, columns = weight.shape
    scales = torch.rand(-(-rows // height), -(-columns // 16)) * 0.01 + 0.001
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    numbers = torch.empty(rows, columns)
    for r in range(scales.shape[0]):
        for c in range(scales.shape[1]):
            block = (slice(height * r, height * r + height), slice(16 * c, 16 * c + 16))
            codes[block] = (weight[block].float() / scales[r, c]).clamp(-448, 448).to(torch.float8_e4m3fn)
            numbers[block] = codes[block].float() * scales[r, c]
    return {name: codes, f"{name}_scale_inv": scales}, numbers


def awq(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Groups of 16: packed by AutoAWQ's order of outputs, numbers by (code − zero) · scale in float64."""
    rows, columns = weight.shape
    module = name.removesuffix(".weight")
    codes = torch.randint(0, 16, (columns, rows))
    zeros = torch.randint(0, 16, (columns // 16, rows))
    scales = (torch.rand(columns // 16, rows) * 0.05).half()
    numbers = torch.empty(rows, columns, dtype=torch.float64)
    for column in range(columns):
        group = column // 16
        numbers[:, column] = (codes[column] - zeros[group]).double() * scales[group].double()
    packed = {"qweight": _pack(codes), "qzeros": _pack(zeros), "scales": scales}
    return {f"{module}.{key}": value for key, value in packed.items()}, numbers


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """As AutoAWQ's WQLinear_GEMM.from_linear packs: word · 8 + order[i] at the bits 4 · i."""
    packed = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        packed |= codes[:, output::8] << (4 * place)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def nf4(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Blocks of 64, scales in two levels, as bitsandbytes stores with `bnb_4bit_use_double_quant`."""
    values = torch.tensor(NF4)
    blocks = weight.numel() // 64
    codes = torch.randint(0, 16, (weight.numel(),), dtype=torch.uint8)
    absmax = torch.randint(0, 256, (blocks,), dtype=torch.uint8)
    nested_map, nested, offset = torch.rand(256) * 2 - 1, torch.rand(-(-blocks // 256)) * 0.01, 0.2
    numbers = torch.empty(weight.numel())
    for block in range(blocks):
        scale = nested_map[int(absmax[block])] * nested[block // 256] + torch.tensor(offset)
        numbers[64 * block : 64 * block + 64] = values[codes[64 * block : 64 * block + 64].long()] * scale
    state = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape),
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset,
    }  # fmt: skip
    packed = {
        "": (codes[0::2] << 4 | codes[1::2])[:, None], ".absmax": absmax, ".quant_map": values,
        ".nested_absmax": nested, ".nested_quant_map": nested_map,
        ".quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }  # fmt: skip
    return {name + key: value for key, value in packed.items()}, numbers.reshape(weight.shape)


def int8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """8-bit integers of bitsandbytes, the largest value of a row 127."""
    largest = weight.float().abs().amax(1)
    codes = (weight.float() / largest[:, None] * 127).round().to(torch.int8)
    return {name: codes, f"{name.removesuffix('.weight')}.SCB": largest}, codes.double() * largest[:, None] / 127


Pack = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
FORMS: dict[str, tuple[Pack, dict[str, Any]]] = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [24, 16], "activation_scheme": "dynamic"}),
    "fp8_even": (
        partial(fp8, height=16),
        {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "int8": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}


def make(folder: Path, form: str) -> Tensors:
    """Store the linears of the decoder layers of a dense checkpoint of one file in a form; return the numbers."""
    pack, quantization = FORMS[form]
    torch.manual_seed(1)
    stored: Tensors = {}
    numbers: Tensors = {}
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        if tensor.ndim == 2 and ".layers." in name:
            packed, numbers[name] = pack(name, tensor)
            stored |= packed
        else:
            stored[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return numbers

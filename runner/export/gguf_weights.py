"""The bytes of the tensors of a GGUF file, from those of the checkpoint. One matrix at a time is in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from runner.errors import StepFailed
from runner.export.gguf_blocks import BLOCK, PACKERS, Blocks, Integers, permutation
from runner.export.gguf_layouts import FORMATS, pack
from runner.export.gguf_tensors import Entry
from runner.export.tables import Calibration
from runner.methods import block_gptq, block_quantization
from runner.model.checkpoint.reader import CheckpointReader
from runner.training.modules import packed_linear

Importance = Mapping[str, torch.Tensor]  # module of the checkpoint → the mean square of each of its inputs [in]
_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def data(
    reader: CheckpointReader, entry: Entry, importance: Importance, calibrated: Calibration | None = None
) -> Blocks:
    """Return the bytes of a tensor [rows, bytes], and the largest rounding of a scale of integers in fp16.

    `calibrated` is by what the integers of the head's blocks are found.

    StepFailed where the type cannot hold the values.
    """
    parts = [_part(reader, entry, source, importance, calibrated) for source in entry.sources]
    return Blocks(np.concatenate([part.data for part in parts]), max(part.rounding for part in parts))


def errors(reader: CheckpointReader, entry: Entry, types: Sequence[str], importance: Importance) -> list[list[float]]:
    """Return for each type the relative error of the outputs of each source, for inputs that do not correlate."""
    found: list[list[float]] = [[] for _ in types]
    for source in entry.sources:
        weight = reader.read(source).float()
        energy = importance.get(source.removesuffix(".weight"))
        columns = torch.ones(weight.shape[1]) if energy is None else energy
        whole = float((weight.square() * columns).sum(dtype=torch.float64))
        for type, own in zip(types, found, strict=True):
            if type in _FLOATS:
                made = weight.to(_FLOATS[type]).float()
            else:
                rounded = block_quantization.quantize(weight, FORMATS[type], energy)
                made = block_quantization.dequantize(rounded, FORMATS[type])
            lost = float(((made - weight).square() * columns).sum(dtype=torch.float64))
            own.append(lost / whole if whole > 0 else 0.0)
    return found


def _part(
    reader: CheckpointReader, entry: Entry, source: str, importance: Importance, calibrated: Calibration | None
) -> Blocks:
    module = source.removesuffix(".weight")
    try:
        if entry.packed:
            return _packed(reader, entry, module)
        if calibrated is not None:
            return Blocks(_compensated(reader.read(source), entry.type, calibrated), 0.0)
        weight = reader.read(source).float()
        if entry.shifted:
            weight = weight + 1
        if entry.heads:
            weight = weight[torch.from_numpy(permutation(len(weight), entry.heads))]
        if entry.type in _FLOATS:
            return Blocks(_float(weight, entry, source), 0.0)
        rounded = block_quantization.quantize(weight, FORMATS[entry.type], importance.get(module))
        return Blocks(pack(rounded, entry.type), 0.0)
    except OverflowError as error:
        raise StepFailed(f"`{module}`: {error}", "build.onnx keeps scales as they are") from None


def _compensated(weight: torch.Tensor, type: str, calibrated: Calibration) -> NDArray[np.uint8]:
    """Round a head [rows, in] to blocks by GPTQ, some rows at a time; scales are those of least weighed error."""
    format, importance, packed = FORMATS[type], calibrated.factor.importance(), []
    for _, part in calibrated.pieces(weight):
        found = block_quantization.quantize(part, format, importance)
        packed.append(pack(block_gptq.compensated(part, found, format, calibrated.factor), type))
    return np.concatenate(packed)


def _float(weight: torch.Tensor, entry: Entry, source: str) -> NDArray[np.uint8]:
    found = weight.to(_FLOATS[entry.type])
    if entry.type == "f16" and not bool(torch.isfinite(found).all()):
        parameter = {"token_embd.weight": "embedding", "output.weight": "head"}.get(entry.name, "dense")
        raise StepFailed(f"`{source}` has values that float16 cannot hold", f"use `{parameter}: bf16`")
    rows = found.reshape(-1, found.shape[-1]) if weight.ndim > 1 else found.reshape(1, -1)
    stored: NDArray[np.uint8] = rows.contiguous().view(torch.uint8).numpy()
    return stored


def _packed(reader: CheckpointReader, entry: Entry, module: str) -> Blocks:
    weight = _integers(reader, module)
    if entry.heads:
        order = permutation(len(weight.values), entry.heads)
        weight = Integers(weight.values[order], weight.zeros[order], weight.scales[order])
    return PACKERS[entry.type](weight)


def _integers(reader: CheckpointReader, module: str) -> Integers:
    """Read the integers of a packed module with a scale for each block."""
    found = packed_linear.read(reader, module)
    if found.groups is not None:
        raise StepFailed(
            f"the groups of `{module}` are not runs of columns (g_idx of GPTQ's act-order), which blocks need",
            "quantize with static groups, as this project does, or use build.onnx",
        )
    rows, count = found.words.shape[0], found.in_features // BLOCK
    columns = found.columns()[::BLOCK]
    scales = found.scale.float().expand(rows, -1)[:, columns]
    middle = torch.full_like(found.scale, 2 ** (found.bits - 1)) if found.zero_point is None else found.zero_point
    zeros = middle.expand(rows, -1)[:, columns].to(torch.int16)
    return Integers(
        found.integers().to(torch.int16).numpy(), zeros.numpy().reshape(rows, count),
        np.ascontiguousarray(scales.numpy()),
    )  # fmt: skip

"""On-disk formats of quantized weights. What the planner needs (`rules`, `config`) imports no torch; `pack` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.model.checkpoint.formats.config import (
    INT_QUANTIZED,
    Packing,
    gptq_version,
    parse,
    quantization_config,
    unpacked_modules,
)
from runner.model.checkpoint.formats.rules import (
    FORMATS,
    GPTQ,
    PACK_QUANTIZED,
    Scheme,
    scale_dtype,
    stored_tensors,
    validate,
    validate_together,
)

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.formats.quantized import Quantized

__all__ = [
    "FORMATS", "GPTQ", "INT_QUANTIZED", "PACK_QUANTIZED", "Packing", "Scheme", "gptq_version", "pack", "parse",
    "quantization_config", "scale_dtype", "stored_tensors", "unpacked_modules", "validate", "validate_together",
]  # fmt: skip


def pack(format: str, module: str, weight: Quantized, version: int | None = None) -> dict[str, torch.Tensor]:
    """The tensors to store for one module, by full name.

    `version` is `gptq_version` of all modules of the checkpoint; None: of this one.
    """
    from runner.model.checkpoint.formats import compressed_tensors, gptq

    if format == GPTQ:
        return gptq.pack(module, weight, version or (1 if weight.symmetric else 2))
    return compressed_tensors.pack(module, weight)

"""Packing a tiny checkpoint by rounding to nearest, with lines of its own rather than the product's quantizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from runner.model.checkpoint import formats
from runner.model.checkpoint.quantization.format import Matrix
from runner.model.checkpoint.quantization.module_patterns import unpacked_modules
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Scheme
from runner.model.checkpoint.reader import DTYPE_NAMES, DTYPES, CheckpointReader
from runner.model.checkpoint.writer import CheckpointWriter
from tests.tiny import save

PACK_QUANTIZED, GPTQ = "pack-quantized", "gptq"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def rounded(weight: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> Quantized:
    """[out, in] on the min–max grid of its scheme, the scale stored in `dtype`."""
    rows, columns = weight.shape
    size, top = scheme.columns(columns), 2**scheme.bits - 1
    values = weight.float().reshape((1, 1, -1) if scheme.strategy == "tensor" else (rows, -1, size))
    zero = None
    if scheme.symmetric:
        scale = (values.abs().amax(-1) / (top / 2)).to(dtype)
        shift = torch.full_like(scale, 2 ** (scheme.bits - 1), dtype=torch.float32)
    else:
        low, high = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
        scale = ((high - low) / top).to(dtype)
        shift = (-low / scale.float()).round().clamp(0, top)
        zero = shift.to(torch.uint8)
    integers = (values / scale.float()[..., None] + shift[..., None]).round().clamp(0, top)
    return Quantized(integers.to(torch.uint8).reshape(rows, columns), scale, zero, scheme.weights)


def make(
    folder: Path,
    format: str,
    scheme_of: Callable[[str], Scheme | None],
    name: str = "llama",
    dtype: torch.dtype = torch.bfloat16,
    **changes: Any,
) -> torch.nn.Module:
    """Write a packed checkpoint to `folder`; return the dense model with our dequantized weights in it."""
    from transformers import AutoModelForCausalLM

    sizes: dict[str, Any] = {} if name == "gpt2" else SIZES
    source = save(folder.with_name(f"{folder.name}-dense"), name, dtype, **(sizes | changes))
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(source)
    weights = model.state_dict()
    parts = CheckpointWriter(folder.with_name(f"{folder.name}-parts"))
    with CheckpointReader(source) as reader:
        inside = [n.removesuffix(".weight") for n in linears(reader)]
        schemes = {module: scheme for module in inside if (scheme := scheme_of(module)) is not None}
        kind = formats.find(format)
        described = kind.config(schemes, unpacked_modules(reader.headers, schemes))
        tensors: dict[str, torch.Tensor] = {}
        for module, scheme in schemes.items():
            header = reader.header(f"{module}.weight")
            weight = reader.read_module_weight(module)
            weight = weight.T if name == "gpt2" else weight
            quantized = rounded(weight, scheme, DTYPES[kind.scale_dtype(scheme, header.dtype)])
            packed = kind.pack(module, quantized, described)
            forecast = kind.tensors(module, scheme, Matrix(*weight.shape), header.dtype)
            assert {n: (DTYPE_NAMES[t.dtype], tuple(t.shape)) for n, t in packed.items()} == forecast
            tensors |= packed
            dense = quantized.dequantize(dtype)
            weights[f"{module}.weight"].copy_(dense.T if name == "gpt2" else dense)
        parts.add("layers", tensors)
        parts.copy("rest", reader, [n for n in reader.names() if n.removesuffix(".weight") not in schemes])
        parts.finish(folder, 10**9)
        config = json.loads((source / "config.json").read_text())
        config["quantization_config"] = described
    (folder / "config.json").write_text(json.dumps(config))
    for extra in kind.FILES:
        (folder / extra).write_text(json.dumps(described))
    return model.eval()


def linears(reader: CheckpointReader) -> Iterable[str]:
    for name, header in sorted(reader.headers.items()):
        numbered = any(part.isdigit() for part in name.split("."))
        if numbered and name.endswith(".weight") and len(header.shape) == 2:
            yield name


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits.float()
    return found

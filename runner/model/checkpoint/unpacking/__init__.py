"""Ways of storing low-precision weights, each a module that meets `Unpacker`: read as the dense numbers they stand for.

Formats that the project writes (`runner.model.checkpoint.formats`) are one of them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from runner.contracts.facts import DTYPE_BYTES, TensorHeader
from runner.model.checkpoint.stored_types import NAMES, main_type
from runner.model.checkpoint.unpacking import awq, bitsandbytes, fp8, mxfp4, packed_formats
from runner.model.checkpoint.unpacking.protocol import Headers, Peek, Unpacker, Unreadable, Weight

__all__ = ["Dense", "Peek", "Unpacker", "Unreadable", "Weight", "dense", "find", "peek_in"]

VERSION = 1  # raised when other numbers come out
ONLY_READ = cast(tuple[Unpacker, ...], (awq, bitsandbytes, fp8, mxfp4))
_ALL = (*ONLY_READ, cast(Unpacker, packed_formats))
_TYPES = {name: safetensors for safetensors, name in NAMES.items()}  # of torch → of safetensors


@dataclass(frozen=True)
class Dense:
    """The dense checkpoint that stored tensors stand for.

    config        config.json without what says how weights are stored
    quantization  what says that, as config.json has it
    tensors       its headers; those of unpacked tensors have no place in a file
    weights       the tensors that are unpacked
    dtype         the type of those, as safetensors names it: "BF16"
    """

    config: Mapping[str, Any]
    quantization: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader]
    weights: tuple[Weight, ...]
    dtype: str


def find(config: Mapping[str, Any], among: Iterable[Unpacker] = _ALL) -> Unpacker | None:
    """Return the way in which the weights of a checkpoint are stored; None for a dense or an unknown one."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return None
    return next((each for each in among if each.holds(quantization)), None)


def dense(unpacker: Unpacker, config: Mapping[str, Any], tensors: Headers, peek: Peek) -> Dense:
    """Return the dense checkpoint that stored tensors stand for. Raises Unreadable."""
    quantization = config["quantization_config"]
    weights = unpacker.weights(quantization, tensors, peek)
    if not weights:
        method = quantization.get("quant_method")
        raise Unreadable(f"stores no weight as its config.json says (quant_method `{method}`)")
    used = {name for weight in weights for name in (*weight.sources, *weight.extra)}
    dtype = _dtype(config, [header for name, header in tensors.items() if name not in used])
    found = {name: header for name, header in tensors.items() if name not in used}
    for weight in weights:
        if weight.name in found:
            raise Unreadable(f"stores `{weight.name}` both as it is and as {unpacker.NAME}")
        size = prod(weight.shape) * DTYPE_BYTES[dtype]
        found[weight.name] = TensorHeader(weight.name, dtype, weight.shape, "", 0, size)
    left = next((header for header in found.values() if header.dtype.startswith(("F8", "F4"))), None)
    if left is not None:
        raise Unreadable(f"stores `{left.name}` as {left.dtype}, and nothing says what its numbers are")
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "compression_config")}
    return Dense(plain, quantization, found, tuple(weights), dtype)


def _dtype(config: Mapping[str, Any], others: list[TensorHeader]) -> str:
    """The type that config.json names for the model; else that of most of the tensors that are stored as floats."""
    for part in (config, config.get("text_config") or {}):
        named = part.get("dtype") or part.get("torch_dtype")
        if named in ("bfloat16", "float16", "float32"):
            return _TYPES[named]
    return _TYPES[main_type(others)]


def peek_in(folder: Path, tensors: Headers) -> Peek:
    """Return a function that reads the bytes of tensors of a folder."""

    def peek(name: str) -> bytes:
        header = tensors[name]
        with (folder / header.shard).open("rb") as file:
            file.seek(header.begin)
            return file.read(header.nbytes)

    return peek

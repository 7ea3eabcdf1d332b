"""bitsandbytes: 4-bit codebooks (nf4, fp4) with a scale for each block of values, and 8-bit integers.

4 bits  X.weight                    uint8 [n / 2, 1]; two codes a byte, the first in its high half
        X.weight.quant_map          float32 [16], the values of the codes
        X.weight.absmax             float32 [n / block], or uint8 codes of `nested_quant_map` · `nested_absmax` + offset
        X.weight.quant_state.…      JSON as uint8: shape, block size, quant_type, nested_…
8 bits  X.weight                    int8 [out, in]; X.SCB float32 [out], the largest absolute value of a row
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.model.checkpoint.formats import bitsandbytes as format
from runner.model.checkpoint.unpacking.protocol import Config, Headers, Peek, Read, Unreadable, Weight

if TYPE_CHECKING:
    import torch

NAME = "bitsandbytes"
PEEKS = True
_NEEDED = (".absmax", ".quant_map")
_NESTED = (".nested_absmax", ".nested_quant_map")


def holds(config: Config) -> bool:
    return config.get("quant_method") == "bitsandbytes"


def weights(config: Config, tensors: Headers, peek: Peek) -> list[Weight]:
    found = []
    for name, header in tensors.items():
        module = name.removesuffix(".weight")
        if header.dtype not in ("U8", "I8") or module == name:
            continue
        if header.dtype == "I8":
            if f"{module}.SCB" not in tensors:
                raise Unreadable(f"stores `{name}` as I8, and its scales `{module}.SCB` are missing")
            extra = tuple(each for each in (f"{module}.weight_format",) if each in tensors)
            found.append(Weight(name, header.shape, (name, f"{module}.SCB"), extra))
            continue
        state = next((each for each in tensors if each.startswith(name + format.STATE)), None)
        missing = [name + key for key in _NEEDED if name + key not in tensors]
        if state is None or missing:
            lost = missing[0] if missing else f"{name}{format.STATE}nf4"
            raise Unreadable(f"stores `{name}` by bitsandbytes, and `{lost}` is missing")
        nested = [name + key for key in _NESTED if name + key in tensors]
        shape = tuple(int(size) for size in _state(peek(state))["shape"])
        found.append(Weight(name, shape, (name, state, *(name + key for key in _NEEDED), *nested)))
    return found


def _state(text: bytes) -> dict[str, Any]:
    try:
        return format.read_state(text)
    except ValueError as error:
        raise Unreadable(str(error)) from None


def unpack(weight: Weight, config: Config, tensors: Headers, read: Read) -> torch.Tensor:
    if len(weight.sources) == 2:
        codes, largest = (read(name) for name in weight.sources)
        return codes.float() * largest.float().reshape(-1, 1) * (1 / 127)  # in the owner's order
    packed, stored, largest, values, *nested = (read(name) for name in weight.sources)
    state = _state(stored.numpy().tobytes())
    if nested:
        size = int(state["nested_blocksize"])
        scales = nested[1].float()[largest.long()] * nested[0].float().repeat_interleave(size)[: largest.numel()]
        largest = scales + float(state["nested_offset"])
    codes = format.unpack_codes(packed)
    count = weight.shape[0] * weight.shape[1]
    scales = largest.float().repeat_interleave(int(state["blocksize"]))[:count]
    return (values.float()[codes[:count].long()] * scales).reshape(weight.shape)

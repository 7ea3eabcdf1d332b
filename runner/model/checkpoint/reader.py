"""Reads tensors of a safetensors checkpoint one at a time, each into memory of its own.

Nothing is memory-mapped: pages of a mapped shard count as resident until the kernel reclaims them, and a step promises
that its memory is one layer.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from runner.contracts.facts import TensorHeader
from runner.contracts.model_config import ModelConfig
from runner.errors import StepFailed
from runner.model.checkpoint import formats
from runner.model.checkpoint.headers import read_headers
from runner.model.checkpoint.quantization import packed_names
from runner.model.checkpoint.quantization.format import Format, Packing
from runner.model.checkpoint.quantization.quantized import Quantized
from runner.model.checkpoint.quantization.scheme import Scheme

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_OPEN_SHARDS = 8
_DOWNLOAD_AGAIN = "download or copy the checkpoint again"


class CheckpointReader:
    """Reader of the tensors of a checkpoint folder. Use as a context manager, or call `close`."""

    def __init__(self, folder: Path, headers: Mapping[str, TensorHeader] | None = None) -> None:
        self.folder = folder
        self.headers = read_headers(folder) if headers is None else headers
        self._files: OrderedDict[str, int] = OrderedDict()
        self._packing: Packing | None = None
        self._config_read = False

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def names(self) -> tuple[str, ...]:
        """Return every tensor of the checkpoint, sorted."""
        return tuple(sorted(self.headers))

    def has(self, name: str) -> bool:
        return name in self.headers

    def header(self, name: str) -> TensorHeader:
        found = self.headers.get(name)
        if found is None:
            raise StepFailed(f"the checkpoint in {self.folder} has no tensor `{name}`", _DOWNLOAD_AGAIN)
        return found

    def read(self, name: str, *, finite: bool = True) -> torch.Tensor:
        """Return a new tensor in the dtype of the shard.

        Raises StepFailed where it is not there, cut short, or (with `finite`) holds NaN or infinite values.
        """
        return self._tensor(self.header(name), finite)

    def _tensor(self, header: TensorHeader, finite: bool) -> torch.Tensor:
        dtype = DTYPES.get(header.dtype)
        if dtype is None:
            raise StepFailed(f"`{header.name}` in {header.shard} has the dtype {header.dtype}, which cannot be read")
        buffer = torch.empty(header.nbytes, dtype=torch.uint8)
        self._fill(header, buffer.numpy().data)
        tensor = buffer.view(dtype).view(header.shape)
        if finite:
            require_finite(tensor, header.name, header.shard)
        return tensor

    def read_slice(self, name: str, index: int) -> torch.Tensor:
        """Return `tensor[index]` as `read` does, reading no more than that."""
        header = self.header(name)
        count, nbytes = header.shape[0], header.nbytes // max(1, header.shape[0])
        if not 0 <= index < count:
            message = f"`{name}` in {header.shard} has {count} slices; there is no number {index}"
            raise StepFailed(message, _DOWNLOAD_AGAIN)
        begin = header.begin + index * nbytes
        return self._tensor(replace(header, shape=header.shape[1:], begin=begin, end=begin + nbytes), True)

    def file(self, shard: str) -> int:
        """Return an open descriptor of a shard; it stays open until other shards replace it."""
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= _OPEN_SHARDS:
            os.close(self._files.popitem(last=False)[1])
        try:
            self._files[shard] = os.open(self.folder / shard, os.O_RDONLY)
        except OSError as error:
            raise StepFailed(f"cannot open {self.folder / shard}: {error.strerror}", _DOWNLOAD_AGAIN) from error
        return self._files[shard]

    def _fill(self, header: TensorHeader, buffer: memoryview) -> None:
        file, done = self.file(header.shard), 0
        while done < len(buffer):
            try:
                count = os.preadv(file, [buffer[done : done + (1 << 30)]], header.begin + done)
            except OSError as error:
                raise StepFailed(f"cannot read `{header.name}` in {header.shard}: {error.strerror}") from error
            if not count:
                raise truncated(header, done)
            done += count

    @property
    def packing(self) -> Packing | None:
        """How packed modules are stored; None for a dense checkpoint."""
        if not self._config_read:
            path = self.folder / "config.json"
            try:
                config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                self._packing = formats.parse(ModelConfig.of(config).quantization)
            except ValueError as error:
                raise StepFailed(f"{path}: {error}") from error
            self._config_read = True
        return self._packing

    def is_packed(self, name: str) -> bool:
        """Return whether a weight ("model.layers.0.mlp.up_proj.weight", or its module's name) is stored as integers."""
        return self.format(name) is not None

    def format(self, name: str) -> Format | None:
        """Return the format of a packed weight, or of a module's; None for a plain one."""
        return formats.of_module(self.headers, name.removesuffix(".weight"))

    def dtype(self, name: str) -> torch.dtype:
        """Return the floating dtype in which `read_weight` gives a weight."""
        format = self.format(name)
        stored = name if format is None else f"{name.removesuffix('.weight')}.{format.SCALE}"
        dtype = DTYPES[self.header(stored).dtype]
        return dtype if format is None or dtype.itemsize > 1 else torch.bfloat16  # as `Quantized.dtype`

    def read_weight(self, name: str) -> torch.Tensor:
        """Return a parameter by its full name: as stored, or dequantized to the dtype that readers use.

        A packed weight is always [out, in], also that of a Conv1D module.
        """
        if not self.is_packed(name):
            return self.read(name)
        weight = self.read_quantized(name.removesuffix(".weight"))
        return weight.dequantize(weight.dtype)

    def read_quantized(self, module: str) -> Quantized:
        """Return a packed weight as the codes that the checkpoint stores.

        Raises StepFailed where it is not packed, or damaged.
        """
        packing, format = self.packing, self.format(module)
        scheme = packing.scheme(module) if packing else None
        if packing is None or format is None or scheme is None:
            raise StepFailed(
                f"`{module}` is packed, but quantization_config in {self.folder / 'config.json'} does not describe it",
                _DOWNLOAD_AGAIN,
            )
        try:
            return format.unpack(module, scheme, packing.config, self.read)
        except (ValueError, RuntimeError) as error:
            raise self._misfit(module, scheme, error) from error

    def _misfit(self, module: str, scheme: Scheme, error: Exception) -> StepFailed:
        message = f"the packed tensors of `{module}` do not fit its scheme ({scheme.describe()}): {error}"
        return StepFailed(message, _DOWNLOAD_AGAIN)

    def weight_shape(self, module: str) -> tuple[int, ...]:
        """Return the shape [out, in] of a packed weight, or that of a plain one as it is stored."""
        format = self.format(module)
        scheme = self.packing.scheme(module) if self.packing and format else None
        if format is None or scheme is None:
            return self.header(f"{module}.weight").shape
        if name := packed_names.shape_holder(self.headers, module):
            return packed_names.read_shape(name, self.read(name).numpy().tobytes())
        return format.shape(self.headers, module, scheme)

    def read_module_weight(self, module: str) -> torch.Tensor:
        """Return `read_weight` of a module, by its name."""
        return self.read_weight(f"{module}.weight")


def truncated(header: TensorHeader, read: int) -> StepFailed:
    return StepFailed(
        f"{header.shard} is cut short: `{header.name}` takes {header.nbytes} bytes there, only {read} could be read",
        _DOWNLOAD_AGAIN,
    )


def require_finite(tensor: torch.Tensor, name: str, shard: str) -> None:
    """Raise StepFailed if a floating tensor holds NaN or infinite values: how many, and where the first is."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    if tensor.element_size() == 1:  # fp8 has no arithmetic of its own
        tensor = tensor.to(torch.float16)
    low, high = torch.aminmax(tensor)  # one vectorized pass, no temporary; NaN propagates
    if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
        return
    flat = tensor.reshape(-1)
    nans, infinite = int(flat.isnan().sum()), int(flat.isinf().sum())
    first = int((~flat.isfinite()).nonzero()[0])
    index = [int(i) for i in torch.unravel_index(torch.tensor(first), tensor.shape)]
    kinds = [f"{count} {kind}" for count, kind in ((nans, "NaN"), (infinite, "infinite")) if count]
    values = "value" if nans + infinite == 1 else "values"
    raise StepFailed(
        f"`{name}` in {shard} holds {' and '.join(kinds)} {values}, the first at {index}",
        "the checkpoint is damaged or its training diverged; " + _DOWNLOAD_AGAIN,
    )

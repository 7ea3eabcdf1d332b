"""The external data file of a graph, which holds its weights: written sequentially, a tensor at a time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir
import torch

_PAGE = 4096  # onnxruntime maps tensors that start at a page
_SMALL = 64 << 10
_UNIT = 16


class DataFile:
    """A context manager; the file is complete on exit.

    With `limit`, what does not fit into so many bytes goes on in further files, whose names end in _1, _2 and so on.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.paths, self._limit = [path], limit
        self._file = path.open("wb")
        self._end = 0

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(
        self, name: str, tensor: torch.Tensor, dtype: ir.DataType | None = None, shape: tuple[int, ...] = ()
    ) -> ir.Value:
        """Write a tensor and return the initializer that refers to it.

        `dtype` and `shape` are given where the tensor holds the bytes of a type that torch lacks: two 4-bit integers in
        each.
        """
        array = np.ascontiguousarray(tensor.numpy())
        alignment = _UNIT if array.nbytes < _SMALL else _PAGE
        padding = -self._end % alignment
        if self._limit and self._end and self._end + padding + array.nbytes > self._limit:
            self._next()
            padding = 0
        self._file.write(b"\0" * padding)
        offset = self._end + padding
        self._file.write(array.reshape(-1).view(np.uint8).data)
        self._end = offset + array.nbytes
        kind = dtype or ir.DataType.from_numpy(array.dtype)
        sizes = ir.Shape(shape or array.shape)
        path = self.paths[-1]
        stored = ir.ExternalTensor(
            path.name, offset, array.nbytes, kind, shape=sizes, name=name, base_dir=str(path.parent)
        )
        return ir.Value(name=name, shape=sizes, type=ir.TensorType(kind), const_value=stored)

    def _next(self) -> None:
        self._file.close()
        first = self.paths[0]
        self.paths.append(first.with_name(f"{first.name}_{len(self.paths)}"))
        self._file = self.paths[-1].open("wb")
        self._end = 0

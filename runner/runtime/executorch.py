"""Run a program of `build.executorch` by ExecuTorch's runtime for Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.errors import StepFailed
from runner.runtime import limits
from runner.runtime import open as find
from runner.runtime.protocol import Ids, Logits

FILE = "model.pte"


def open(folder: Path, device: str, threads: int | None) -> ExecuTorch:
    """Return the runtime of the program in `folder`. StepFailed where it cannot be loaded."""
    if device != "cpu":
        raise StepFailed("a program for XNNPACK runs on processors alone", "use `--device cpu`")
    return ExecuTorch(folder, threads)


class ExecuTorch:
    """The runtime of a program: one sequence at a time, whose cache is in the program."""

    name = "executorch"
    max_batch: int | None = 1

    def __init__(self, folder: Path, threads: int | None) -> None:
        import executorch.kernels.quantized  # noqa: F401  registers the operators of embeddings of integers
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime

        engine = find.engine(folder) or {}
        path = folder / FILE
        try:
            self.vocabulary, self.context = int(engine["vocabulary"]), int(engine["context"])
        except (KeyError, TypeError, ValueError) as error:
            message = f"`{folder / find.ENGINE_FILE}` does not describe an ExecuTorch program: {error!r}"
            raise StepFailed(message, "build it again") from None
        if not path.is_file():
            raise StepFailed(f"`{folder}` has no `{FILE}`, which its engine.json describes", "build it again")
        if threads is not None:
            _unsafe_reset_threadpool(threads)
        try:
            self._program: Any = Runtime.get().load_program(path)
            self._forward: Any = self._program.load_method("forward")
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise StepFailed(f"`{path}` cannot be loaded: {reason}", "build it again") from error
        self._cached = 0

    def prefill(self, ids: Ids, *, last: bool = False) -> Logits:
        limits.check(ids, 0, self.context, self.max_batch, self.vocabulary)
        self._cached = 0  # what later positions hold of an earlier sequence is masked until it is written again
        logits = self._run(ids)
        return logits[:, -1:] if last else logits

    def decode(self, ids: Ids) -> Logits:
        limits.check(ids, self._cached, self.context, self.max_batch, self.vocabulary)
        return self._run(ids)

    def close(self) -> None:
        self._forward = self._program = None

    def _run(self, ids: Ids) -> Logits:
        given = torch.from_numpy(np.ascontiguousarray(ids))
        (found,) = self._forward.execute([given, torch.tensor([self._cached])])
        self._cached += ids.shape[1]
        logits: Logits = found.numpy().copy()  # the next call writes to the same memory
        return logits

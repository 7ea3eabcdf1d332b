"""Run a package of `build.compile` by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.errors import StepFailed
from runner.runtime import limits
from runner.runtime import open as find
from runner.runtime.protocol import Ids, Logits
from runner.system import cpu

FILE = "model.pt2"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BUILD_AGAIN = "build it again, on a machine like the one that runs it"


def target(device: torch.device) -> dict[str, str]:
    """Return the target of a package as in engine.json: it runs only there."""
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
    else:
        capability = "compute capability {}.{}".format(*torch.cuda.get_device_capability(device))
    return {"device": device.type, "capability": capability, "torch": torch.__version__}


def open(folder: Path, device: str, threads: int | None) -> Package:
    """Return the runtime of the package in `folder`. StepFailed where it was compiled for another device or torch."""
    return Package(folder, device, threads)


class Package:
    """The runtime of a compiled package; the cache is an input and an output of every call."""

    name = "aotinductor"
    max_batch: int | None = None

    def __init__(self, folder: Path, device: str, threads: int | None) -> None:
        engine = find.engine(folder) or {}
        path = folder / FILE
        try:
            self.vocabulary, self.context = int(engine["vocabulary"]), int(engine["context"])
            self._layers, self._heads, self._width = (int(engine[key]) for key in ("layers", "kv_heads", "head_dim"))
            self._dtype = PRECISIONS[engine["precision"]]
            wanted = {key: str(engine[key]) for key in ("device", "capability", "torch")}
            instructions = {str(name) for name in engine["instructions"]}
        except (KeyError, TypeError, ValueError) as error:
            message = f"`{folder / find.ENGINE_FILE}` does not describe a compiled package: {error!r}"
            raise StepFailed(message, _BUILD_AGAIN) from None
        self._device = torch.device(device)
        if wanted["device"] != self._device.type:
            message = f"`{path}` is compiled for the device {wanted['device']}, not {device}"
            raise StepFailed(message, f"use `--device {wanted['device']}`, or build it there")
        for key, here in target(self._device).items():
            if wanted[key] != here:
                what = "torch " if key == "torch" else ""
                message = f"`{path}` is compiled for {what}{wanted[key]}; here is {what}{here}"
                raise StepFailed(message, _BUILD_AGAIN)
        missing = sorted(instructions.difference(cpu.instructions())) if self._device.type == "cpu" else []
        if missing:
            raise StepFailed(
                f"`{path}` is compiled for a processor that has {', '.join(missing)}; this one lacks them", _BUILD_AGAIN
            )
        if not path.is_file():
            raise StepFailed(f"`{folder}` has no `{FILE}`, which its engine.json describes", "build it again")
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            self._package: Any = torch._inductor.aoti_load_package(str(path))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise StepFailed(f"`{path}` cannot be loaded: {reason}", "build it again") from error
        self._past: list[torch.Tensor] = []
        self._cached = 0

    def prefill(self, ids: Ids, *, last: bool = False) -> Logits:
        limits.check(ids, 0, self.context, self.max_batch, self.vocabulary)
        nothing = (len(ids), self._heads, 0, self._width)
        self._past = [torch.zeros(nothing, dtype=self._dtype, device=self._device) for _ in range(2 * self._layers)]
        self._cached = 0
        logits = self._run(ids)
        return logits[:, -1:] if last else logits

    def decode(self, ids: Ids) -> Logits:
        limits.check(ids, self._cached, self.context, self.max_batch, self.vocabulary)
        return self._run(ids)

    def close(self) -> None:
        self._package, self._past = None, []

    def _run(self, ids: Ids) -> Logits:
        batch, new = ids.shape
        total = self._cached + new
        positions = torch.arange(self._cached, total, device=self._device).repeat(batch, 1)
        mask = torch.ones(batch, total, dtype=torch.int64, device=self._device)
        given = torch.from_numpy(np.ascontiguousarray(ids)).to(self._device)
        with torch.inference_mode():
            logits, *self._past = self._package(given, mask, positions, self._past)
        self._cached = total
        found: Logits = logits.cpu().numpy()
        return found

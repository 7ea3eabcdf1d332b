"""A Context for running one step in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner.contracts.context import Artifact, DataFacts, Samples
from runner.contracts.lineage import AppliedStep, Lineage
from runner.data.harness_tasks import locate
from runner.errors import Interrupted
from runner.recipe.schema.load import defaults


class Host:
    """Runs a kind on a checkpoint in `folder`; `stop_after` layers, the next safe point interrupts."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        checkpoint: Path,
        ids: torch.Tensor | None = None,
        stop_after: int | None = None,
        others: Mapping[str, Path] | None = None,
        **params: Any,
    ) -> None:
        self.params = defaults(kind, ({"data": "calibration"} if ids is not None else {}) | params)
        self.step = AppliedStep("step", kind, self.params)
        inputs, lineage = {"checkpoint": checkpoint, **(others or {})}, Lineage("a local model")
        self.inputs = {name: Artifact(path, "checkpoint", "0" * 64, lineage) for name, path in inputs.items()}
        self.out_dir, self.scratch_dir = folder / "out", folder / "scratch"
        for path in (self.out_dir, self.scratch_dir):
            path.mkdir(parents=True, exist_ok=True)
        self.cache_dir = folder / "cache"
        self.seed, self.device, self.threads, self.processes = 0, "cpu", 1, 1
        self.recipe_text = "version: 1\nname: test\n"
        self.ids, self.stop_after = ids, stop_after
        self.samples: Samples | None = None  # the same windows with images
        self.has_environment = False
        self.limits: Mapping[str, float] = {}
        self.events: list[dict[str, Any]] = []

    def data(self, parameter: str) -> torch.Tensor:
        assert self.ids is not None
        return self.ids

    def images(self, parameter: str) -> Samples | None:
        return self.samples

    def data_facts(self, parameter: str) -> DataFacts:
        assert self.ids is not None
        windows, length = self.ids.shape
        return DataFacts(parameter, windows, length, self.ids.nbytes, "0" * 64)

    def files(self, parameter: str) -> Mapping[str, Path]:
        entries = {entry: locate(entry) for entry in self.params[parameter]}
        return {entry: path for entry, path in entries.items() if path is not None}

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def safe_point(self) -> None:
        if self.stop_after is not None and len(self.layers()) >= self.stop_after:
            raise Interrupted("stopped")

    def layers(self) -> list[int]:
        return [event["layer"] for event in self.events if event["event"] == "layer"]

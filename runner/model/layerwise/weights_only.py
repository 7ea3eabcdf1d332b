"""Decoder layers for a method that needs no calibration."""

from __future__ import annotations

import torch

from runner.model.checkpoint.placed_part import site_weight
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise import progress_file
from runner.model.layerwise.apply_method import transform_group
from runner.model.layerwise.method import Method, Statistics, Transformed
from runner.model.layerwise.statistics import largest
from runner.model.layerwise.stream_run import ExpertSink, StreamInputs, StreamRun


class WeightsOnly:
    """Layers for a method that needs no calibration: weights are read one linear at a time, nothing is run."""

    def __init__(self, inputs: StreamInputs, method: Method) -> None:
        self.inputs, self.method = inputs, method
        self.reader = CheckpointReader(inputs.folder)
        self.largest: dict[str, torch.Tensor] = {}

    def begin(self, progress: progress_file.Progress, run: StreamRun) -> progress_file.Progress:
        return progress

    def run(self, index: int, experts: ExpertSink) -> dict[str, Transformed]:
        changed: dict[str, Transformed] = {}
        for linear in self.inputs.facts.sites:
            if linear.layer != index or linear.name not in self.method.options:
                continue
            weight = site_weight(self.reader, linear).to(self.inputs.device)
            if linear.name in self.method.shares_scale:
                self.largest[linear.name] = largest(weight)
            done = transform_group(self.method, {linear.name: weight}, Statistics(), self._largest)
            if linear.is_expert:
                experts(index, done)
            else:
                changed |= done
        self.largest.clear()
        return changed

    def _largest(self, name: str) -> torch.Tensor:
        if name not in self.largest:
            self.largest[name] = largest(self.reader.read_module_weight(name).to(self.inputs.device))
        return self.largest[name]

    def finished(self, layer: int) -> list[str]:
        return []

    def drop(self, layer: int) -> None:
        """Nothing flows, so nothing is left behind."""

    def close(self) -> None:
        self.reader.close()

"""Adapters of experts merged into the stored tensors of a mixture, in the layout in which it stores its experts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch

from runner.contracts.mixtures import ExpertParameter
from runner.contracts.sites import Site
from runner.model.architecture.sites import of_mixtures
from runner.model.checkpoint import adapter_config, derived
from runner.model.checkpoint.placed_part import rows_of, site_weight
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.adapter import expert_factors, wrapped_parameters
from runner.model.layerwise.streamed_model import StreamedModel
from runner.training.modules.lora_math import is_pruned, merged


class AdaptedExperts:
    """The adapter of a mixture, as `adapter_config.config` describes it: its part that is of experts.

    `tensors` are those of the whole adapter, by module and kind.
    """

    def __init__(
        self, streamed: StreamedModel, reader: CheckpointReader, config: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
    ) -> None:  # fmt: skip
        self.reader, self.config, self.tensors = reader, config, tensors
        self.sites = {site.name: site for site in of_mixtures(streamed.mixtures, reader.headers)}
        modules = dict(streamed.model.named_modules())
        self.wrapped = wrapped_parameters(modules, config.get("target_parameters") or ())
        parameters = {each.name: each for mixture in streamed.mixtures for each in mixture.parameters()}
        self.parameters = {name: parameters[f"{owner}.{key}"] for name, (owner, key) in self.wrapped.items()}

    def changes(self) -> dict[str, derived.Change]:
        """Return the new values of the tensors that hold these experts, by name."""
        held: dict[str, list[tuple[str, int, Site]]] = {}
        for name, parameter in self.parameters.items():
            for expert in range(parameter.experts):
                for matrix in parameter.matrices:
                    site = self.sites[matrix.name.format(expert)]
                    held.setdefault(site.tensor, []).append((name, expert, site))
        return {tensor: lambda sites=sites: self._tensor(sites) for tensor, sites in held.items()}  # type: ignore[misc]

    def _tensor(self, held: list[tuple[str, int, Site]]) -> torch.Tensor:
        """The new value of a tensor, of which the sites in `held` are parts, or the whole."""
        name, expert, site = held[0]
        if site.index is None:
            weight = self._expert(name, expert)[site.name]
            return weight.T if site.transposed else weight
        stored = self.reader.read(site.tensor).clone()
        for (name, expert), sites in groupby(held, key=lambda each: each[:2]):
            weights = self._expert(name, expert)
            for _, _, site in sites:
                rows_of(stored[expert], site).copy_(weights[site.name])
        return stored

    def _expert(self, name: str, expert: int) -> dict[str, torch.Tensor]:
        """The merged matrices [rows, columns] of one expert in a parameter, under its mask if it was pruned."""
        parameter: ExpertParameter = self.parameters[name]
        sites = [self.sites[matrix.name.format(expert)] for matrix in parameter.matrices]
        weight = torch.cat([site_weight(self.reader, site) for site in sites])
        a, b = (self.tensors[f"{name}.lora_{part}.weight"] for part in "AB")
        a, b = expert_factors(a, b, parameter.experts)
        scale = adapter_config.scaling(self.config, parameter.name, a.shape[1])
        found = merged(weight, a[expert], b[expert], scale, masked=is_pruned(weight))
        return dict(zip((site.name for site in sites), found.split([site.rows for site in sites]), strict=True))

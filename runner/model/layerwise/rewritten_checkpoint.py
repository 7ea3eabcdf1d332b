"""Writing the checkpoint of a rewrite: the same tensors, some with other values, a part per layer while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runner.contracts.account import Account
from runner.contracts.facts import CheckpointFacts
from runner.model.checkpoint import derived
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.checkpoint.writer import CheckpointWriter
from runner.model.layerwise.method import Results
from runner.model.layerwise.rewriting import Rewritten


@dataclass(frozen=True)
class Outside:
    """What changes outside the decoder layers.

    tensors   by their names in the result; each is made when it is written
    changed   tensor of the source → those of the result that hold it now
    config    keys of config.json that differ
    """

    tensors: Mapping[str, Callable[[], torch.Tensor]] = field(default_factory=dict)
    changed: Mapping[str, Collection[str]] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RewrittenCheckpoint:
    """The checkpoint that a rewrite makes of the one in `reader`; `parts` holds its finished layers."""

    reader: CheckpointReader
    facts: CheckpointFacts
    parts: CheckpointWriter

    def layer(self, index: int, rewritten: Rewritten) -> dict[str, Any]:
        """Write one decoder layer; return what the record says of it."""
        part = f"layer-{index:05d}"
        self.parts.add(part, rewritten.tensors)
        kept = [name for name in self.facts.layer_tensors(index) if name not in rewritten.tensors]
        self.parts.copy(f"{part}-kept", self.reader, kept)
        return {
            "layer": index,
            "modules": {site: dict(metrics) for site, metrics in sorted(rewritten.modules.items())},
            "divergence": rewritten.divergence,
            "rounding": rewritten.rounding,
            "changed": sorted(rewritten.tensors),
        }

    def finish(
        self,
        results: Results,
        out: Path,
        max_shard_bytes: int,
        card: Callable[[Path], str],
        outside: Outside | None = None,
    ) -> Account:
        """Write everything outside the layers, then put the folder together; `results` is what `layer` gave of each."""
        outside = outside or Outside()
        inside = {name for index in range(self.facts.layer_count) for name in self.facts.layer_tensors(index)}
        for number, (name, value) in enumerate(sorted(outside.tensors.items())):
            self.parts.add(f"outside-{number:05d}", {name: value()})
        kept = [name for name in self.reader.headers if name not in inside and name not in outside.changed]
        self.parts.copy("rest", self.reader, kept)
        changed = {name: [name] for layer in results for name in layer["changed"]}
        parts = derived.Parts(self.parts, max_shard_bytes, {**changed, **outside.changed})
        return derived.write(self.reader, derived.Derived(parts, outside.config, card=card), out)

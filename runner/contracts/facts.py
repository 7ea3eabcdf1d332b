"""The facts of a checkpoint, from config.json and the safetensors headers alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.contracts.model_config import ModelConfig
from runner.contracts.model_description import Linears, ModelDescription
from runner.contracts.sites import Site

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a shard: its safetensors dtype name, shape, and the byte range [begin, end) in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class CheckpointFacts:
    """The facts of one checkpoint: its config, tensors by name, and sites.

    `sites` are those that kinds of steps may change, the matrices that the decoder layers multiply by: in the order of
    the layers, sorted by name inside a layer.

    `quantization` is config.json's quantization_config, or the one a planned step will write; `adapter` is the
    adapter_config.json of an adapter stored with the weights, in the folder `adapter/`. For an engine these are the
    facts of the checkpoint it was made from, and `engine` is the content of its engine.json. `description` is
    transformers' description of the model; None where it was not asked for.

    `measured`, of the result of a step that measures sites, says what it measures of this checkpoint: `candidates`,
    `sites`, and once it is there its `result`, a runner.contracts.sensitivity.Sensitivity.

    `compressed_by` is the kind of step that quantized the weights; None where they are not quantized, or not by a step.

    `unpacked` has the tensors that are stored in low precision, where these are the facts of the numbers that they
    stand for: name → what the form is called in which they are stored.
    """

    source: str
    config: ModelConfig
    tensors: Mapping[str, TensorHeader]
    layers_prefix: str  # "model.layers."; "" where no decoder layers were found
    layer_count: int
    sites: tuple[Site, ...]
    quantization: Mapping[str, Any] | None = None
    adapter: Mapping[str, Any] | None = None
    engine: Mapping[str, Any] | None = None
    description: ModelDescription | None = None
    unpacked: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, Any] | None = None
    compressed_by: str | None = None
    tokenizer: Path | None = None  # the folder of its tokenizer on this machine, while planning

    @property
    def architecture(self) -> str:
        return self.config.architecture

    @property
    def linears(self) -> Linears:
        """The linear modules of the model; none where it was not described."""
        return Linears() if self.description is None else self.description.linears

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def parameters(self) -> int:
        total = 0
        for tensor in self.tensors.values():
            count = 1
            for size in tensor.shape:
                count *= size
            total += count
        return total

    def layer_tensors(self, index: int) -> list[str]:
        """Return the names of the tensors of one decoder layer, sorted."""
        return sorted(name for name in self.tensors if name.startswith(f"{self.layers_prefix}{index}."))

    def layer_nbytes(self) -> int:
        """Return the bytes of the largest decoder layer."""
        sizes = [0] * max(1, self.layer_count)
        for name, tensor in self.tensors.items():
            if self.layers_prefix and name.startswith(self.layers_prefix):
                index = name[len(self.layers_prefix) :].split(".", 1)[0]
                if index.isdigit():
                    sizes[int(index)] += tensor.nbytes
        return max(sizes)

"""Writing the checkpoint of a layer-wise step: a part per layer while it runs, a Hugging Face folder at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from runner.contracts.context import Context
from runner.contracts.facts import CheckpointFacts
from runner.model import card
from runner.model.checkpoint.companions import COMPRESSION, copy_companions, write_json
from runner.model.checkpoint.formats import GPTQ, gptq_version, pack, quantization_config, unpacked_modules
from runner.model.checkpoint.reader import DTYPES, CheckpointReader
from runner.model.checkpoint.writer import CheckpointWriter, parse_size
from runner.model.layerwise.apply_method import dense
from runner.model.layerwise.method import Transformed
from runner.model.layerwise.targets import planned_schemes

Results = list[dict[str, Any]]  # one entry per finished layer, as kept in state.Progress


class Output:
    """The checkpoint that a step of `kind` writes. `transposed` modules keep [in, out] on disk (GPT-2's Conv1D)."""

    def __init__(self, ctx: Context, reader: CheckpointReader, facts: CheckpointFacts, kind: str) -> None:
        self.ctx, self.reader, self.facts, self.kind = ctx, reader, facts, kind
        self.transposed = {linear.name for linear in facts.linears if linear.transposed}
        self.schemes = planned_schemes(ctx.params, facts)
        self.version = gptq_version(self.schemes.values())
        self.format: str = ctx.params.get("format", "")
        self.parts = CheckpointWriter(ctx.scratch_dir / "parts")

    def layer(self, index: int, names: Sequence[str], changed: Mapping[str, Transformed]) -> dict[str, Any]:
        """Write one decoder layer, `names` its tensors in the source checkpoint; return what the record says of it."""
        tensors: dict[str, torch.Tensor] = {}
        for module, result in changed.items():
            if result.quantized is not None:
                tensors |= pack(self.format, module, result.quantized, self.version)
            else:
                weight = dense(result, DTYPES[self.reader.header(f"{module}.weight").dtype])
                tensors[f"{module}.weight"] = (weight.T if module in self.transposed else weight).contiguous().cpu()
        replaced = {f"{module}.weight" for module in changed}
        self.parts.add(f"layer-{index:05d}", tensors)
        self.parts.copy(f"layer-{index:05d}-kept", self.reader, [n for n in names if n not in replaced])
        modules = {m: {**describe(r), **{k: float(v) for k, v in r.metrics.items()}} for m, r in changed.items()}
        return {"layer": index, "modules": modules}

    def finish(self, layer_names: set[str], results: Results) -> None:
        """Everything outside the layers, then the folder: shards, config, tokenizer, card."""
        rest = [name for name in self.reader.headers if name not in layer_names]
        self.parts.copy("rest", self.reader, rest)
        out = self.ctx.out_dir
        self.parts.finish(out, parse_size(self.ctx.params["max_shard_size"]))
        config = json.loads((self.reader.folder / "config.json").read_text())
        if self.schemes:
            untouched = unpacked_modules(self.reader.headers, self.schemes)
            act_order = bool(self.ctx.params.get("act_order", False))
            quantization = quantization_config(self.format, self.schemes, untouched, act_order=act_order)
            config["quantization_config"] = quantization
            if self.format == GPTQ:
                write_json(out / "quantize_config.json", quantization)
            write_json(out / COMPRESSION, compression(self.ctx, self.kind))
        write_json(out / "config.json", config)
        copy_companions(self.reader.folder, out)
        text = card.render(self.ctx, config, results)
        (out / "README.md").write_text(text, encoding="utf-8")


def compression(ctx: Context, kind: str) -> dict[str, Any]:
    """How a quantized checkpoint was made, for a step that is to quantize its weights again: the kind, its parameters

    but for the name of its data, and how much of that it saw, as [windows, length].
    """
    params = {key: value for key, value in ctx.params.items() if key != "data"}
    calibration = None
    if ctx.params.get("data") is not None:
        facts = ctx.data_facts("data")
        calibration = [facts.samples, facts.sequence_length]
    return {"kind": kind, "params": params, "calibration": calibration}


def describe(result: Transformed) -> dict[str, Any]:
    """The scheme a module was written with, as JSON; empty for a dense weight."""
    q = result.quantized
    if q is None:
        return {}
    return {"bits": q.bits, "group_size": q.group_size, "strategy": q.strategy, "symmetric": q.symmetric}

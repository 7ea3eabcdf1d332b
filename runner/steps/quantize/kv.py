"""Scales for an 8-bit cache of keys and values: largest absolute value over the largest number, or 1.

They are the observed ranges of llm-compressor's `kv_cache_scheme`; runner/model/layerwise/attention_caches.py rounds
with them in evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from runner.contracts.facts import DTYPE_BYTES, CheckpointFacts, TensorHeader
from runner.contracts.model_description import CachedAttention
from runner.contracts.step_kind import CHECKPOINT, QUANTIZED, Context, Cost, Inputs, Params, Result
from runner.errors import Diagnostic, StepFailed
from runner.model.checkpoint import adapter_config, formats
from runner.model.checkpoint.quantization import cache_scheme
from runner.model.checkpoint.quantization.cache_scheme import SCALES, CacheScheme
from runner.model.layerwise import memory_budget
from runner.steps import forward_cost

if TYPE_CHECKING:
    import torch

VERSION = 1
CONSUMES = (CHECKPOINT, QUANTIZED)
PRODUCES = QUANTIZED
REQUIRES = ()
METRICS = ()

_ELEMENTS = {"fp8": "float8_e4m3", "int8": "int8"}
_FLOATS = ("BF16", "F16", "F32")
_REASON = "scale of the cache"


def scheme(params: Params) -> CacheScheme:
    return CacheScheme(_ELEMENTS[params["scheme"]], params["per"] == "head")


def check(params: Params, inputs: Inputs) -> list[Diagnostic]:
    facts = inputs.checkpoint
    found = adapter_config.adapter_conflicts(facts.adapter, "this step would leave it behind")
    if params["scheme"] == "int8" and params.get("data") is None:
        message = "`scheme: int8` without `data` would round every key and value to a whole number"
        found.append(Diagnostic("R654", message, "name a calibration text, or use `scheme: fp8`", path=("scheme",)))
    refused = _unwritable(facts) or _unreadable(facts)
    return [*found, refused] if refused is not None else found


def _unwritable(facts: CheckpointFacts) -> Diagnostic | None:
    """Return why the configuration of a checkpoint cannot say how its cache is rounded, or None."""
    config = facts.quantization or {}
    method = config.get("quant_method")
    if config.get(cache_scheme.KEY):
        return Diagnostic("R653", f"`{facts.source}` has scales for its cache already", "leave one of the two out")
    if config and method != "compressed-tensors":
        message = f"the configuration of `{method}` checkpoints cannot say how a cache is rounded"
        return Diagnostic("R653", message, "quantize with `format: pack-quantized`, int- or float-quantized")
    if config.get("dequantize"):
        message = "transformers unpacks this model while it loads it, and then does not round its cache"
        return Diagnostic("R653", message, "leave the cache as it is")
    return None


def _unreadable(facts: CheckpointFacts) -> Diagnostic | None:
    """Return why readers would not find every cache of a model, or None."""
    if facts.description is None:
        return None
    caches, source = facts.description.caches, f"`{facts.source}` (`{facts.config.model_type}`)"
    if caches is None:
        message = f"which modules of {source} have a cache depends on values, so no plan can tell"
        return Diagnostic("R651", message, "leave the cache as it is")
    if not caches:
        message = f"readers find no cache in {source}: no attention module has a `k_proj`, `v_proj` or `qkv_proj`"
        return Diagnostic("R651", message, "leave the cache as it is")
    if not facts.description.counts_heads:
        message = f"readers find the heads of a cache in `num_key_value_heads`, which {source} does not set"
        return Diagnostic("R651", message, "leave the cache as it is")
    strange = next((each for each in caches if not each.key_heads or each.key_heads != each.value_heads), None)
    if strange is not None:
        kept = "as many keys as values" if strange.key_heads else "keys and values of its own"
        message = f"`{strange.name}` of {source} does not keep {kept}"
        return Diagnostic("R651", message, "leave the cache as it is")
    return None


def estimate(params: Params, inputs: Inputs) -> Cost:
    facts, machine = inputs.checkpoint, inputs.machine
    seconds = 2.5 + 2 * facts.nbytes / machine.disk_bytes_per_second
    if "data" not in inputs.data:
        return Cost(memory_budget.RUNTIME, facts.nbytes, facts.nbytes, seconds)
    forward = forward_cost.estimate_forward([facts], inputs.data["data"], machine)
    return Cost(forward.memory, facts.nbytes, forward.scratch + facts.nbytes, forward.seconds + seconds)


def outcome(params: Params, inputs: Inputs) -> CheckpointFacts:
    facts, chosen = inputs.checkpoint, scheme(params)
    tensors = dict(facts.tensors)
    for name, heads in _scales(facts).items():
        shape, dtype = chosen.scale_shape(heads), scale_type(facts.tensors, name)
        tensors[name] = TensorHeader(name, dtype, shape, "", 0, DTYPE_BYTES[dtype] * math.prod(shape))
    return replace(facts, tensors=tensors, quantization=cache_scheme.add(facts.quantization, chosen))


def changes(params: Params, inputs: Inputs) -> frozenset[str]:
    return frozenset()


def adds(params: Params, inputs: Inputs) -> Mapping[str, str]:
    return dict.fromkeys(_scales(inputs.checkpoint), _REASON)


def _scales(facts: CheckpointFacts) -> dict[str, int]:
    """Return the name of every scale, with the heads that it is for."""
    caches: tuple[CachedAttention, ...] = (facts.description.caches if facts.description else None) or ()
    heads = ((each.stored, (each.key_heads, each.value_heads)) for each in caches)
    return {f"{stored}.{key}": count for stored, counts in heads for key, count in zip(SCALES, counts, strict=True)}


def scale_type(tensors: Mapping[str, TensorHeader], name: str) -> str:
    """Return the dtype of a scale: readers load it in that of the model, which is that of the weights beside it."""
    module = name.rpartition(".")[0]
    for projection in ("k_proj", "qkv_proj", "kv_b_proj", "v_proj"):
        held = formats.of_module(tensors, f"{module}.{projection}")
        stored = tensors.get(f"{module}.{projection}.{'weight' if held is None else held.SCALE}")
        if stored is not None and stored.dtype in _FLOATS:
            return stored.dtype
    return "BF16"


def run(ctx: Context) -> Result:
    from runner.model.checkpoint import derived
    from runner.model.checkpoint.headers import model_config, weights_nbytes
    from runner.model.checkpoint.reader import DTYPES, CheckpointReader
    from runner.model.checkpoint.writer import CheckpointWriter, parse_size
    from runner.model.layerwise import cache_ranges
    from runner.model.layerwise.streamed_model import StreamedModel
    from runner.steps import layer_stream, model_card

    chosen, folder = scheme(ctx.params), ctx.inputs["checkpoint"].path
    streamed = StreamedModel(folder, ctx.device)
    if ctx.params.get("data") is None:
        results = cache_ranges.of_ones(streamed, chosen)
    else:
        results = cache_ranges.observe(streamed, ctx.data("data"), chosen, layer_stream.stream_run(ctx))
    streamed.reader.close()
    with CheckpointReader(folder) as reader:
        tensors: dict[str, torch.Tensor] = {}
        for layer in results:
            for module, ranges in layer["modules"].items():
                for key, (what, largest) in zip(SCALES, ranges.items(), strict=True):
                    name = f"{module}.{key}"
                    if not all(map(math.isfinite, largest)):
                        raise StepFailed(f"the {what} of `{module}` are not all finite on the calibration text")
                    tensors[name] = cache_ranges.scale(largest, chosen, DTYPES[scale_type(reader.headers, name)])
        parts = CheckpointWriter(ctx.scratch_dir / "parts")
        parts.copy("weights", reader, reader.names())
        parts.add("scales", tensors)
        config = model_config(folder)
        account = derived.write(
            reader,
            derived.Derived(
                derived.Parts(parts, parse_size(ctx.params["max_shard_size"]), {}),
                {**config.raw, "quantization_config": cache_scheme.add(config.quantization, chosen)},
                added=dict.fromkeys(tensors, _REASON),
                card=model_card.render(ctx),
            ),
            ctx.out_dir,
        )
    return Result(
        metrics={"bytes": weights_nbytes(ctx.out_dir), "modules": len(tensors) // 2}, details={"caches": results},
        account=account,
    )  # fmt: skip

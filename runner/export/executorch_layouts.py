"""How XNNPACK holds integer weights, for the planner as well: no torch.

Of 4 bits: symmetric integers in groups of a multiple of 32 columns that divides the row, with bfloat16 scales. Of 8
bits: a scale for each row. Inputs of these products are rounded to 8 bits token by token, asymmetrically, as they come.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from runner.contracts.context import DataFacts
from runner.contracts.facts import CheckpointFacts
from runner.errors import Diagnostic
from runner.export import preflight, supported, table_layouts
from runner.model.checkpoint.quantization.scheme import Scheme

# Types whose decoders with a static cache are compared with transformers by a test.
TYPES = ("gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")
_GROUPS = (256, 128, 64, 32)
_TABLE_GROUP = 32  # columns of an INT4 table that share a scale
_LONGEST = 2048  # positions of the cache by default: it is in memory in full


def group_of(scheme: Scheme, columns: int) -> int | tuple[str, str]:
    """Return the columns that share a scale, 0 for a row of 8-bit integers; or (what is wrong, remedy)."""
    if not scheme.is_integer:
        return f"is stored as {scheme.describe()}; XNNPACK gets integers", "quantize with `bits: 4` or `bits: 8`"
    if not scheme.symmetric:
        return "is quantized asymmetrically; XNNPACK's integers have no zero points", "quantize with `symmetric: true`"
    if scheme.bits > 4:
        if scheme.strategy == "group":
            return f"has {scheme.bits} bits in groups; XNNPACK's 8-bit integers have a scale for each row", (
                "quantize with `group_size: channel`, or with `bits: 4`"
            )
        return 0
    size = scheme.columns(columns)
    if scheme.strategy != "group":
        size = next((each for each in _GROUPS if columns % each == 0), 0)
        return size or (f"has {columns} columns, of which 32 are no part", "leave it out by `ignore`")
    if size % 32 or columns % size:
        wrong = f"has groups of {size} columns; XNNPACK takes multiples of 32 that divide a row"
        return wrong, "quantize with another `group_size`, such as 32"
    return size


def context(facts: CheckpointFacts, params: Mapping[str, Any]) -> int:
    """Return the positions of the cache."""
    return int(params.get("context") or min(supported.context(facts.config), _LONGEST))


def refuse(facts: CheckpointFacts, params: Mapping[str, Any]) -> list[Diagnostic]:
    """Return all reasons why a checkpoint cannot become a program."""
    refused = supported.refuse(facts.config)
    if refused is None and facts.config.model_type not in TYPES:
        what = f"models of the type `{facts.config.model_type}` were not compared as ExecuTorch programs"
        refused = what, f"the types {', '.join(TYPES)} were"
    if refused is not None:
        return [Diagnostic("R477", *refused)]
    found = []
    if facts.adapter is not None:
        message = "the checkpoint has an adapter, and XNNPACK's products take none"
        found.append(Diagnostic("R477", message, "merge it first (`merge: requantize`, `merge: auto`)"))
    if (wanted := params.get("context")) and wanted > supported.context(facts.config):
        message = f"`context` is {wanted}; the model has {supported.context(facts.config)} positions"
        found.append(Diagnostic("R864", message, "lower it", path=("context",)))
    width = facts.config.hidden_size
    if params["embedding"] == "int4" and width % _TABLE_GROUP:
        message = f"`embedding` is int4; its groups of {_TABLE_GROUP} columns do not divide {width}"
        found.append(Diagnostic("R864", message, "use `embedding: int8`", path=("embedding",)))
    else:
        found += table_layouts.warn(params, params["embedding"])
    found += table_layouts.check_data(facts, params, params["embedding"])
    return found + _weights(facts)


def _weights(facts: CheckpointFacts) -> list[Diagnostic]:
    try:
        packed = preflight.schemes(facts)
    except ValueError as error:
        return [Diagnostic("R478", f"the weights of `{facts.source}` cannot be exported: {error}")]
    if (facts.quantization or {}).get("desc_act"):
        message = f"`{facts.source}` is quantized with `desc_act`: its groups are not in the order of its columns"
        help = "quantize the dense model with `quantize.gptq`, whose `act_order` keeps groups in order"
        return [Diagnostic("R478", message, help)]
    complaints: dict[tuple[str, str], list[str]] = {}
    for name, (site, scheme) in packed.items():
        how = group_of(scheme, site.columns)
        if not isinstance(how, int):
            complaints.setdefault(how, []).append(name)
    return [
        Diagnostic("R478", f"{preflight.listed(names)} {wrong}", help) for (wrong, help), names in complaints.items()
    ]


def nbytes(facts: CheckpointFacts, params: Mapping[str, Any]) -> int:
    """Return the bytes of the program's weights. A tied embedding and head share values, not all of their scales."""
    packed, total = preflight.schemes(facts), 0
    for site, scheme in packed.values():
        size = group_of(scheme, site.columns)
        bits, group = (4, size) if size else (8, 0)
        total += site.size * bits // 8 + (site.size // group * 2 if isinstance(group, int) and group else site.rows * 4)
    bits = table_layouts.BITS[params["embedding"]]
    tables = [name for name in facts.tensors if table_layouts.is_table(facts, name)]
    for name, tensor in facts.tensors.items():
        size = math.prod(tensor.shape)
        if name in tables:
            total += size * (bits or 32) // 8 + (tensor.shape[0] * 4 if bits == 8 else 0)
            total += size // _TABLE_GROUP * (4 + 2) // len(tables) if bits == 4 else 0  # of the embedding, of the head
        elif name.rpartition(".")[0] not in packed:
            total += size * 4
    return total


def engine(facts: CheckpointFacts, params: Mapping[str, Any], calibration: DataFacts | None = None) -> dict[str, Any]:
    """Return the part of engine.json that is known before anything runs; `calibration` is that of the tables."""
    packed = preflight.schemes(facts)
    stored = Counter(scheme.describe() for _, scheme in packed.values())
    dense = len(facts.sites) - len(packed)
    return {
        "format": "executorch", "backend": "xnnpack", "embedding": params["embedding"],
        **table_layouts.described(calibration),
        "context": context(facts, params), "vocabulary": facts.config.vocabulary_size, "max_batch": 1,
        "layers": facts.layer_count, "stored": dict(sorted({**stored, **({"dense": dense} if dense else {})}.items())),
    }  # fmt: skip

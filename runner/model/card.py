"""The README.md of a checkpoint: the model and the steps, how to load it, its metrics, the recipe itself.

Pure text: equal arguments give equal bytes, so no dates and no host names. Imports no torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner import wording
from runner.contracts import mixtures
from runner.contracts.lineage import Lineage
from runner.contracts.model_config import ModelConfig
from runner.model import card_bits
from runner.model.architecture import supported
from runner.model.checkpoint import adapter_loading, formats, servers
from runner.model.checkpoint.adapter_config import FOLDER, adapter_config
from runner.model.checkpoint.headers import model_config, read_headers, weights_nbytes
from runner.model.checkpoint.quantization import cache_scheme, compressed_tensors_config
from runner.model.checkpoint.quantization.cache_scheme import CacheScheme
from runner.model.checkpoint.quantization.format import Reader, Stored

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_FOLDER = "path/to/this/folder"
_INTRODUCTION = """\
Made from `{source}` ({architecture}) by runner, which compresses language models from a recipe.
The recipe is at the end of this page: applying it again gives this checkpoint again."""
_LOAD = f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{_FOLDER}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{_FOLDER}")
```"""

_VLLM = Reader("vLLM")
_PLAIN = (Reader("transformers"), _VLLM)
_WITH_CACHE = Reader("transformers", compressed_tensors_config.METHOD)

_LOAD_ADAPTER = f"""```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "{_FOLDER}", subfolder="{FOLDER}")
```"""
_LOAD_ADAPTER_LATE = _LOAD_ADAPTER.replace(
    "\nmodel =", '\nmodel(**tokenizer("once", return_tensors="pt"))  # unpacks the weights\nmodel ='
)


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card.

    source       the recipe's model: a Hub id, a folder or `demo:NAME`
    steps        (kind, its parameters) of every step that changed the checkpoint, in order
    stored       the number of modules stored in each way; empty for a dense checkpoint
    metrics      name → value, shown in this order
    transposed   the modules are Conv1D ones, whose weights are [in, out] (GPT-2)
    adapter      the adapter_config.json of the adapter that is stored with the weights
    cache        how servers round keys and values; None: they do not
    late         transformers unpacks the weights in the first forward only
    auto_class   the class of transformers that loads it
    bits         the bits of each module that the last step quantized
    """

    source: str
    architecture: str
    steps: Sequence[tuple[str, Mapping[str, Any]]]
    bytes_before: int
    bytes_after: int
    recipe: str
    stored: Mapping[Stored, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    transposed: bool = False
    adapter: Mapping[str, Any] | None = None
    cache: CacheScheme | None = None
    late: bool = False
    auto_class: str = supported.auto_class("")
    bits: Mapping[str, int] = field(default_factory=dict)


def text(card: ModelCard) -> str:
    """Return the text of README.md."""
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)}---",
        f"# {_title(card)}",
        _INTRODUCTION.format(source=card.source, architecture=card.architecture),
        "## What was done",
        "\n".join(f"{i}. {_step(kind, params)}" for i, (kind, params) in enumerate(card.steps, 1)),
        _sizes(card),
        *card_bits.section(card.bits),
        "## Use it",
        *_usage(card),
    ]
    if card.metrics:
        rows = "\n".join(f"| {name} | {value:.5g} |" for name, value in card.metrics.items())
        parts += ["## Measured", f"| metric | value |\n|---|---|\n{rows}"]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", card.recipe)), default=0))
    parts += ["## Recipe", f"{fence}yaml\n{card.recipe.rstrip()}\n{fence}"]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: ModelCard) -> dict[str, Any]:
    front: dict[str, Any] = {}
    if _HUB_ID.match(card.source):
        front["base_model"] = card.source
        if card.stored or card.cache:
            front["base_model_relation"] = "quantized"
    front |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    tags = {"runner", *(kind.replace(".", "-") for kind, _ in card.steps)}
    tags |= {f"{own.scheme.bits}-bit" for own in card.stored} | {formats.find(own.format).TAG for own in card.stored}
    if card.cache and not card.stored:
        tags.add(compressed_tensors_config.METHOD)
    return front | {"tags": sorted(tags)}


def _title(card: ModelCard) -> str:
    name = card.source.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    if card.stored:
        bits = sorted({own.scheme.bits for own in card.stored})
        return f"{name}, quantized to {' and '.join(map(str, bits))} bits"
    return f"{name}, compressed"


def _step(kind: str, params: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key} {_value(value)}" for key, value in params.items() if _is_result_relevant(key, value))
    return f"`{kind}`" + (f": {shown}" if shown else "")


def _is_result_relevant(key: str, value: Any) -> bool:
    return value not in (None, {}, [], "") and key not in ("max_shard_size", "gates")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_value(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_value, value))
    return f"`{value}`" if isinstance(value, str) else str(value)


def _sizes(card: ModelCard) -> str:
    lines = [f"- Weights: {_bytes(card.bytes_before)} before, {_bytes(card.bytes_after)} after."]
    for own, count in sorted(card.stored.items(), key=lambda item: (-item[1], item[0].scheme.describe())):
        lines.append(f"- {count} linear module{'s' if count != 1 else ''}: {own.scheme.describe()}.")
    if card.stored:
        names = wording.ticked(sorted({own.format for own in card.stored}))
        lines.append(f"- Stored as {names}; everything else is as it was.")
    if card.cache is not None:
        lines.append(f"- Keys and values of its cache, rounded while it is served: {card.cache.describe()}.")
    if card.adapter is not None:
        lines.append(f"- An adapter of rank {card.adapter['r']} beside them, in `{FOLDER}/`: load it too.")
        layers = {name.rpartition(".")[0] for name in card.adapter.get("target_parameters") or ()}
        if layers:
            number = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
            lines.append(f"- It adapts the experts of {number}, each by factors of its own.")
    return "\n".join(lines)


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"


def _usage(card: ModelCard) -> list[str]:
    """Return instructions to load and to serve it, as far as readers can."""
    readers: Sequence[Reader] = _PLAIN if card.cache is None else (_WITH_CACHE, _VLLM)
    if card.stored:
        readers = formats.readers(card.stored, card.transposed)
    usual = readers[0]
    other = next((reader for reader in readers if reader.load and not reader.limit), None)
    if usual.limit and other is not None:
        code = other.load.format(folder=_FOLDER)
        parts = [
            f"Load it with {other.name} (`pip install {other.packages}`); {usual.limit.rstrip('.')}:",
            f"```python\n{code}\n```",
        ]
    else:
        load = _LOAD.replace("AutoModelForCausalLM", card.auto_class)
        parts = [f"`pip install {' '.join(filter(None, (usual.name, usual.packages)))}`, then", load]
    if usual.note:
        parts.append(usual.note)
    if _unpacked_at_once(card):
        parts.append(
            "transformers unpacks the weights as it loads them, and leaves inputs as they are; vLLM rounds them."
        )
    if card.adapter is not None:
        # Older versions of peft turn the factors of experts.
        package = '"peft>=0.21"' if card.adapter.get("target_parameters") else "peft"
        parts += [f"and its adapter (`pip install {package}`):", _LOAD_ADAPTER_LATE if card.late else _LOAD_ADAPTER]
    limit = next((r.limit for r in readers if r.name == _VLLM.name), "vLLM does not load this format.")
    if limit:
        return [*parts, limit]
    return parts + _vllm(card.adapter) + _vllm_cpu(card) + _vllm_cache(card.cache)


def _unpacked_at_once(card: ModelCard) -> bool:
    """Whether transformers loads modules of compressed-tensors without rounding inputs that servers round."""
    ways = [own for own in card.stored if formats.find(own.format).TAG == compressed_tensors_config.METHOD]
    return not card.late and any(own.scheme.activations is not None for own in ways)


def _vllm_cpu(card: ModelCard) -> list[str]:
    """Return the sentence that vLLM needs a GPU for these weights, where it does."""
    found = (servers.verdict("vllm", own.format, [own.scheme], servers.CPU) for own in card.stored)
    refused = next((each.why for each in found if each.how == servers.REFUSED), None)
    return [f"vLLM needs a GPU for it: {refused}."] if refused is not None else []


def _vllm_cache(cache: CacheScheme | None) -> list[str]:
    if cache is None:
        return []
    if cache.element != "float8_e4m3":
        return ["vLLM has no cache of 8-bit integers: it would take the scales for those of an fp8 one."]
    limit = " With scales per head, that needs its FlashAttention backend." if cache.per_head else ""
    return [f"Its cache is in fp8 with `--kv-cache-dtype fp8`.{limit}"]


def _vllm(adapter: Mapping[str, Any] | None) -> list[str]:
    if adapter is None:
        return ["To serve it with vLLM:", f"```sh\nvllm serve {_FOLDER}\n```"]
    found = adapter_loading.verdict(adapter_loading.VLLM, adapter)
    if found.how == servers.UNKNOWN:
        return [f"{found.why[0].upper()}{found.why[1:]}; one that is merged needs no trial."]
    if found.how == servers.REFUSED:
        return [f"{found.why}: it serves the weights without their adapter."]
    *options, modules, named = adapter_loading.vllm_arguments(adapter, "recovered", f"{_FOLDER}/{FOLDER}")
    lines = [f"vllm serve {_FOLDER} {' '.join(options)}", f"{modules} {named}"]
    return ["To serve it with vLLM, as the model `recovered`:", "```sh\n" + " \\\n  ".join(lines) + "\n```"]


@dataclass(frozen=True)
class Origin:
    """The origin of a checkpoint.

    folder    the checkpoint that the last step changed
    lineage   the recipe's model and all steps, the last one included
    recipe    the resolved recipe
    """

    folder: Path
    lineage: Lineage
    recipe: str


def render(origin: Origin, folder: Path, results: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the card of the checkpoint in `folder`, whose other files are all written, including its adapter.

    `results` has one entry per layer that the last step changed: `modules` by name, each with its metrics.
    """
    config = model_config(folder)
    modules = [module for layer in results for module in layer["modules"].values()]
    return text(
        ModelCard(
            source=origin.lineage.source,
            architecture=config.architecture,
            auto_class=supported.auto_class(config.model_type),
            steps=[(step.kind, step.params) for step in origin.lineage.steps],
            bytes_before=weights_nbytes(origin.folder),
            bytes_after=weights_nbytes(folder),
            recipe=origin.recipe,
            stored=_stored(folder, config),
            metrics={**_means(modules), **mixtures.counts(results)},
            transposed=config.model_type == "gpt2",
            adapter=adapter_config(folder),
            cache=cache_scheme.parse(config.quantization),
            late=compressed_tensors_config.unpacks_late(config.quantization or {}),
            bits={n: m["bits"] for layer in results for n, m in layer["modules"].items() if "bits" in m},
        )
    )


def _stored(folder: Path, config: ModelConfig) -> Counter[Stored]:
    """Return the number of modules of a packed checkpoint that are stored in each way."""
    packing = formats.parse(config.quantization)
    if packing is None:
        return Counter()
    headers = read_headers(folder)
    modules = (name.rpartition(".")[0] for name in headers if formats.is_weight(name))
    found = ((formats.of_module(headers, module), packing.scheme(module)) for module in modules)
    return Counter(Stored(format.NAME, scheme) for format, scheme in found if format is not None and scheme is not None)


def _means(modules: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of every metric over modules, and for errors the worst."""
    values: dict[str, list[float]] = {}
    for module in modules:
        for name, value in module.items():
            if isinstance(value, float):
                values.setdefault(name, []).append(value)
    found = {}
    for name in sorted(values):
        found[f"{name} of a linear module, mean"] = sum(values[name]) / len(values[name])
        if name == "error":
            found[f"{name} of a linear module, worst"] = max(values[name])
    return found

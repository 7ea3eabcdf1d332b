"""The model and the data of a recipe, found and digested."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from runner.contracts.facts import CheckpointFacts
from runner.contracts.step_kind import DataFacts
from runner.data.image_records import check_images, image_records
from runner.data.tokenizer import no_tokenizer
from runner.data.windows import too_short
from runner.errors import Diagnostic, MachineError, RecipeError, Span
from runner.model.architecture import decoder_layers, inspect, model_complaints, probe, sites, token_ids
from runner.model.checkpoint import adapter_config, unpacking
from runner.model.checkpoint.companions import COMPRESSION, broken_json, companion_files
from runner.model.checkpoint.headers import read_headers
from runner.model.source import gguf, hub, locate, unpacked
from runner.plan.counts import count_tokens
from runner.plan.digests import digest_files, digest_named, load_cache, update_cache
from runner.plan.types import ResolvedData, ResolvedModel
from runner.recipe.types import DataSpec, ModelSpec, Recipe

# Files that count besides shards and companion files: how weights are stored and were quantized, a low-rank adapter.
_DIGESTED = ("config.json", "quantize_config.json", COMPRESSION, "*.index.json", f"{adapter_config.FOLDER}/*")


@dataclass(frozen=True)
class Found:
    """A model, the folder of its tokenizer, which may be there before the weights are, and warnings about them."""

    model: ResolvedModel
    tokenizer: Path | None
    warnings: tuple[Diagnostic, ...] = ()


def find_model(spec: ModelSpec, cache_file: Path | None, span: Span | None = None, pinned: str | None = None) -> Found:
    """Find a model and read its facts; a Hub model at the commit `pinned`, if given.

    Raises RecipeError placed at `span`.
    """
    files: dict[str, str] = {}
    warnings: list[Diagnostic] = []
    try:
        path, commit = locate.locate_model(replace(spec, revision=pinned) if pinned else spec)
        if path is not None and commit is not None:
            path, warnings = _with_adapter(spec.source, path)
        if path is not None and gguf.is_gguf(path):
            path = gguf.checkpoint(path, digest_files([path], cache_file)[path], spec.source)
        if path is None and commit is not None:
            tokenizer = hub.download_small(spec.source, commit)
            if unpacked.needs_weights(tokenizer):
                path = hub.download_model(spec.source, commit, adapted=_is_adapted(tokenizer))
        if path is None and commit is not None:
            facts = hub.remote_facts(spec.source, commit, tokenizer)
        else:
            tokenizer = path = path or Path()
            facts = inspect.facts(path, spec.source)
        if commit is not None:
            # The same before and after the download, and in every cache.
            adapted = " with its adapter" if facts.adapter is not None else ""
            digest = hashlib.sha256(f"hub model {spec.source}@{commit}{adapted}".encode()).hexdigest()
        else:
            files = digest_files_of(path or tokenizer, facts, cache_file)
            digest = digest_named(files)
        _check_companions(facts, tokenizer, digest, cache_file)
        facts = described(facts, tokenizer)
    except RecipeError as error:
        raise RecipeError(d.at(d.span or span) for d in error.diagnostics) from None
    stored = next(iter(facts.unpacked.values()), "")
    digest = _unpacked_digest(digest, facts) if stored else digest
    model = ResolvedModel(spec.source, spec.revision, commit, path, digest, facts, files, stored)
    return Found(model, tokenizer, tuple(each.at(span) for each in warnings))


def _is_adapted(folder: Path) -> bool:
    return adapter_config.adapter_config(folder) is not None


def _with_adapter(id: str, folder: Path) -> tuple[Path | None, list[Diagnostic]]:
    """Return the folder of a cached Hub model, None where it lacks the adapter that the model carries.

    Where nobody can say whether it carries one, there is a warning.
    """
    listed = hub.lists_adapter(id, folder)
    if listed is not None:
        return (folder if not listed or hub.has_adapter(folder) else None), []
    message = (
        f"the local cache has `{id}` without an adapter, as other programs fetch models, and the Hub cannot be asked "
        f"whether it carries one in `{adapter_config.FOLDER}/`: this plan takes it for a model without"
    )
    help = "plan once with the network; what the Hub says of this commit is kept"
    return folder, [Diagnostic("R458", message, help, severity="warning")]


def _unpacked_digest(model: str, facts: CheckpointFacts) -> str:
    return unpacked.digest(model, adapted=facts.adapter is not None)


def find_unpacked(model: ResolvedModel) -> ResolvedModel | None:
    """Return the dense checkpoint that a model of packed weights stands for; None where there is none.

    One that a recipe quantized has none: the recipe starts from the model as it was before. Raises RecipeError.
    """
    if model.facts.quantization is None or model.stored:
        return None
    path = model.path
    if path is None and model.commit is not None:
        path = hub.download_model(model.source, model.commit, adapted=model.facts.adapter is not None)
    if path is None or (path / COMPRESSION).is_file() or unpacking.find(model.facts.config.raw) is None:
        return None
    tensors = model.facts.tensors
    facts = inspect.unpacked(model.facts.config.raw, tensors, model.source, unpacking.peek_in(path, tensors))
    facts = described(replace(facts, adapter=model.facts.adapter), path)
    stored = str(model.facts.quantization.get("quant_method"))
    return replace(model, path=path, digest=_unpacked_digest(model.digest, facts), facts=facts, stored=stored)


def described(facts: CheckpointFacts, folder: Path) -> CheckpointFacts:
    """Return the facts with transformers' description of the model. Raises RecipeError with all errors in it."""
    packed = {site.tensor: (site.rows, site.columns) for site in facts.sites if site.tensor not in facts.tensors}
    found = probe.description(folder, facts.tensors, packed)
    wrong = model_complaints.complaints(found, facts.tensors, facts.config.raw, facts.source)
    if not found.problems:
        if found.missing or found.misshaped or found.converted:
            wrong = decoder_layers.complaints(facts.config.raw, facts.tensors, facts.source) or wrong
        elif any(name.startswith(facts.layers_prefix) for name in found.unexpected):
            wrong = decoder_layers.miscounted(facts.config.raw, facts.tensors, facts.source) or wrong
    if wrong:
        raise RecipeError(wrong)
    prefix = found.layers_prefix()
    if prefix is not None and prefix != facts.layers_prefix:
        facts = inspect.with_layers(facts, prefix)
    multiplying = sites.multiplying(facts.sites, facts.tensors, found)
    return replace(facts, description=found, sites=multiplying, tokenizer=folder)


def digest_files_of(folder: Path, facts: CheckpointFacts, cache_file: Path | None) -> dict[str, str]:
    """Return the sha256 of each file of a checkpoint that is read or copied, by its path relative to the folder."""
    tensors = read_headers(folder) if facts.unpacked else facts.tensors
    names = {tensor.shard for tensor in tensors.values()} | set(companion_files(folder))
    found = (path for pattern in _DIGESTED for path in folder.glob(pattern) if path.is_file())
    names |= {path.relative_to(folder).as_posix() for path in found}
    digests = digest_files((folder / name for name in sorted(names)), cache_file)
    return {path.relative_to(folder).as_posix(): digest for path, digest in digests.items()}


def _check_companions(facts: CheckpointFacts, folder: Path, model_digest: str, cache_file: Path | None) -> None:
    """Raise RecipeError for broken JSON files of the model and for special tokens that do not exist.

    A folder without faults is cached by its digest.
    """
    name = f"companions:{model_digest}"
    if load_cache(cache_file).get(name) is True:
        return
    complaints = broken_json(folder) or token_ids.complaints(facts, folder)
    if complaints:
        raise RecipeError(complaints)
    update_cache(cache_file, {name: True})


def find_data(
    recipe: Recipe, names: Iterable[str], cache_file: Path | None, pinned: Callable[[DataSpec], str | None]
) -> tuple[dict[str, ResolvedData], list[Diagnostic]]:
    """Return the named data entries that can be found, Hub datasets at the commits `pinned`, and the complaints."""
    found: dict[str, ResolvedData] = {}
    complaints: list[Diagnostic] = []
    for name in sorted(set(names)):
        try:
            spec, commit = recipe.data[name], pinned(recipe.data[name])
            location = locate.locate_data(replace(spec, revision=commit) if commit else spec)
            found[name] = _locate(location, cache_file)
        except RecipeError as error:
            complaints += [d.at(d.span or recipe.span(("data", name, _key(d.code)))) for d in error.diagnostics]
        except MachineError as error:  # the package that reads images is not installed
            complaints.append(Diagnostic("R503", error.message, error.help, recipe.span(("data", name, "images"))))
    return found, complaints


def _key(code: str) -> str:
    keys = {"R462": "field", "R466": "split", "R464": "samples", "R662": "images", "R663": "images", "R664": "images"}
    return keys.get(code, "source")


def _locate(location: locate.DataLocation, cache_file: Path | None) -> ResolvedData:
    spec = location.spec
    if location.commit is not None:
        digest = hashlib.sha256(f"hub dataset {spec.source}@{location.commit}".encode()).hexdigest()
        return ResolvedData(spec, (), location.commit, digest, 0)
    # Contents, order and format decide the tokens; names do not.
    read = [*location.files, *_images(location)]
    digests = digest_files(read, cache_file)
    digest = digest_named({f"{i:06d}{path.suffix}": digests[path] for i, path in enumerate(read)})
    return ResolvedData(spec, location.files, None, digest, sum(path.stat().st_size for path in location.files))


def _images(location: locate.DataLocation) -> list[Path]:
    """Return the images of a data entry, in order; files that are none raise RecipeError."""
    if location.spec.images is None:
        return []
    records = image_records(location.spec, location.files)
    check_images(records)
    return [path for record in records for path in record.images]


def measure_data(
    recipe: Recipe, found: Found, data: Mapping[str, ResolvedData], cache_file: Path | None
) -> tuple[dict[str, DataFacts], list[Diagnostic]]:
    """Return entries as steps see them, with complaints: too long windows, too short texts, no tokenizer.

    `samples` is counted where all windows are used and the count is known. An entry with complaints still has facts,
    those that the recipe asks for, so that steps can be checked against them.
    """
    facts = {name: _facts(entry, None) for name, entry in data.items()}
    if data and found.tokenizer is not None and (missing := no_tokenizer(found.tokenizer)) is not None:
        return facts, [missing.at(recipe.span(("model", "source")))]
    complaints: list[Diagnostic] = []
    for name, entry in data.items():
        try:
            count = count_tokens(entry, found.tokenizer, found.model.digest, cache_file)
        except RecipeError as error:
            complaints += [d.at(d.span or recipe.span(("data", name, _key(d.code)))) for d in error.diagnostics]
            continue
        except MachineError as error:  # a package that reads the file is not installed
            complaints.append(Diagnostic("R503", error.message, error.help, recipe.span(("data", name, "source"))))
            continue
        facts[name] = _facts(entry, count)
        complaints += _length(recipe, found, entry, count)
    return facts, complaints


def _length(recipe: Recipe, found: Found, entry: ResolvedData, count: int | None) -> list[Diagnostic]:
    """Return the complaint about windows that are too long, or else about a text that is too short."""
    name, length = entry.spec.name, entry.spec.sequence_length
    config = found.model.facts.config
    if 0 < config.context < length:
        message = (
            f"data `{name}` has `sequence_length` {length}; the model's context is {config.context} tokens "
            f"(`{config.context_key}` in config.json)"
        )
        help = f"lower `sequence_length` to {config.context} or less"
        return [Diagnostic("R465", message, help, recipe.span(("data", name, "sequence_length")))]
    if count is not None and count < (entry.spec.samples or 1) * length:
        return [too_short(entry.spec, count).at(recipe.span(("data", name, "samples")))]
    return []


def _facts(entry: ResolvedData, count: int | None) -> DataFacts:
    spec = entry.spec
    samples = count // spec.sequence_length if spec.samples is None and count is not None else spec.samples
    return DataFacts(spec.name, samples, spec.sequence_length, entry.bytes, entry.digest, spec.images is not None)

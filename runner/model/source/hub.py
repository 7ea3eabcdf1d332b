"""Models and data of the Hugging Face Hub: from the cache, else over the network, always pinned to a commit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from runner.contracts.facts import DTYPE_BYTES, CheckpointFacts, TensorHeader
from runner.errors import Diagnostic, RecipeError
from runner.model.architecture import decoder_layers, inspect, remote_code
from runner.model.architecture.supported import refuse_config
from runner.model.checkpoint import adapter_config, headers, unpacking
from runner.model.checkpoint.companions import CHAT_TEMPLATES, compressed_by

_COMPANIONS = [
    "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.spm", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
]  # fmt: skip
_ADAPTER = f"{adapter_config.FOLDER}/{adapter_config.WEIGHTS}"  # of a checkpoint that carries one
_WEIGHTS = ["model*.safetensors", _ADAPTER]


def _others(folders: Sequence[str]) -> list[str]:
    """Return the patterns of paths with a slash that begin with none of these names."""
    beginnings = sorted({name[:i] for name in folders for i in range(len(name))})
    letters = {start: sorted({n[len(start)] for n in folders if n.startswith(start)}) for start in beginnings}
    return [f"{start}[!{''.join(letters[start])}]*/*" for start in beginnings]


# Other formats and originals live in subfolders, which stay where they are.
_NESTED = _others((CHAT_TEMPLATES, adapter_config.FOLDER))


def _small() -> list[str]:
    """Return the patterns of files to fetch besides weights, including code where it may run."""
    return [*_COMPANIONS, *([remote_code.CODE] if remote_code.is_allowed() else [])]


def cached_model(id: str, revision: str | None) -> Path | None:
    """Return the folder of a model that is completely in the local cache, or None; its name is the commit."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                id,
                revision=revision,
                local_files_only=True,
                allow_patterns=_small() + _WEIGHTS,
                ignore_patterns=_NESTED,
            )
        )
    except (OSError, ValueError):
        return None
    return folder if _complete(folder) else None


def _complete(folder: Path) -> bool:
    """Return whether config.json and every shard are there, and of an adapter its weights; they are checked later."""
    if not (folder / "config.json").is_file():
        return False
    if (folder / adapter_config.FOLDER / adapter_config.CONFIG).is_file() and not has_adapter(folder):
        return False
    if (folder / headers.SINGLE).is_file():
        return True
    try:
        return all((folder / shard).is_file() for shard in set(headers.read_index(folder).values()))
    except RecipeError:
        return False


def has_adapter(folder: Path) -> bool:
    """Return whether a model in the local cache is there with an adapter."""
    return (folder / _ADAPTER).is_file()


def lists_adapter(id: str, folder: Path) -> bool | None:
    """Return whether the repository of a model in the local cache lists an adapter; None where it cannot be asked.

    `folder` is that of `cached_model`. Other programs, transformers among them, fetch weights without the adapter, so
    that a folder which has none says nothing. The Hub is asked once for each commit: huggingface_hub keeps its list.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, snapshot_download

    commit = folder.name
    kept = folder.parents[1] / "trees" / f"{commit}.json"  # since huggingface_hub 2
    if has_adapter(folder):
        return True
    if kept.is_file():
        return _ADAPTER in kept.read_text("utf-8")
    try:
        with hub_errors_as_diagnostics("model", id, commit):
            try:
                get_hf_file_metadata(hf_hub_url(id, _ADAPTER, revision=commit))  # at once, while lists are tried again
                listed = True
            except errors.EntryNotFoundError:
                listed = False
            patterns = ["config.json", f"{adapter_config.FOLDER}/{adapter_config.CONFIG}"]
            snapshot_download(id, revision=commit, allow_patterns=patterns)
    except RecipeError:
        return None
    return listed


def model_commit(id: str, revision: str | None) -> str:
    """Return the commit that a branch or tag of a model now refers to."""
    from huggingface_hub import HfApi

    with hub_errors_as_diagnostics("model", id, revision):
        return str(HfApi().model_info(id, revision=revision).sha)


def download_small(id: str, commit: str) -> Path:
    """Download config and tokenizer without weights, which with the headers is all that a plan needs."""
    from huggingface_hub import snapshot_download

    with hub_errors_as_diagnostics("model", id, commit):
        return Path(snapshot_download(id, revision=commit, allow_patterns=_small(), ignore_patterns=_NESTED))


def download_model(id: str, commit: str, *, adapted: bool) -> Path:
    """Download the checkpoint at a commit; files in the cache are not fetched again.

    `adapted` says that it carries an adapter. Raises RecipeError where that, too, cannot be had.
    """
    from huggingface_hub import snapshot_download

    with hub_errors_as_diagnostics("model", id, commit):
        patterns = _small() + _WEIGHTS
        folder = Path(snapshot_download(id, revision=commit, allow_patterns=patterns, ignore_patterns=_NESTED))
        if adapted and not has_adapter(folder):  # huggingface_hub returns what there is
            raise FileNotFoundError(f"`{_ADAPTER}` of the model is not in {folder}")
        return folder


def remote_facts(id: str, commit: str, folder: Path) -> CheckpointFacts:
    """Return facts from the headers on the Hub, without weights; `folder` is that of `download_small`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    config = headers.read_config(folder)
    refusal = refuse_config(config, f"`{id}`")
    if refusal:
        raise RecipeError([refusal])
    with hub_errors_as_diagnostics("model", id, commit):
        try:
            metadata = HfApi().get_safetensors_metadata(id, revision=commit)
        except NotASafetensorsRepoError:
            raise RecipeError(
                [
                    Diagnostic(
                        "R433",
                        f"`{id}` has no safetensors files on the Hub",
                        "convert it with `save_pretrained` of transformers and name the new folder",
                    )
                ]
            ) from None
    tensors = {}
    for shard in sorted(metadata.files_metadata):
        for name, info in sorted(metadata.files_metadata[shard].tensors.items()):
            if info.dtype not in DTYPE_BYTES:
                raise RecipeError(
                    [Diagnostic("R438", f"`{name}` of `{id}` has the dtype {info.dtype}, which is unknown")]
                )
            begin, end = info.data_offsets
            tensors[name] = TensorHeader(name, str(info.dtype), tuple(info.shape), shard, begin, end)
    if unpacking.find(config, unpacking.ONLY_READ) is not None:
        found = inspect.unpacked(config, tensors, id, _no_bytes)
    else:
        found = replace(decoder_layers.build(config, tensors, id, {}), compressed_by=compressed_by(folder))
    return replace(found, adapter=adapter_config.adapter_config(folder))


def _no_bytes(name: str) -> bytes:
    raise ValueError(f"{name} is not downloaded yet")


def dataset_commit(id: str, revision: str | None) -> str:
    """Return the commit that a branch or tag of a dataset refers to.

    Offline it is the commit of the last download.
    """
    from huggingface_hub import HfApi, constants

    try:
        with hub_errors_as_diagnostics("dataset", id, revision):
            return str(HfApi().dataset_info(id, revision=revision).sha)
    except RecipeError:
        reference = Path(constants.HF_HUB_CACHE) / f"datasets--{id.replace('/', '--')}" / "refs" / (revision or "main")
        if reference.is_file():
            return reference.read_text("utf-8").strip()
        raise


@contextmanager
def hub_errors_as_diagnostics(noun: str, id: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of huggingface_hub into a RecipeError with the remedy."""
    from huggingface_hub import errors

    # The HTTP library below changed its name between releases; its base error is a base of HfHubHTTPError.
    bases = errors.HfHubHTTPError.__mro__
    unreached: tuple[type[Exception], ...] = (OSError,)
    unreached += tuple(base for base in bases if issubclass(base, Exception) and base.__name__ == "HTTPError")
    at = f" at revision `{revision}`" if revision else ""
    try:
        yield
    except errors.GatedRepoError:
        message = f"the {noun} `{id}` is gated: its terms must be accepted on https://huggingface.co/{id}"
        help = "accept them there, then `hf auth login` or set HF_TOKEN"
    except errors.RevisionNotFoundError:
        message, help = f"the {noun} `{id}` has no revision `{revision}`", "name a branch, tag or commit of it"
    except errors.RepositoryNotFoundError:
        message = f"there is no {noun} `{id}` on the Hub, or it is private"
        help = "check the spelling; for a private one, `hf auth login` or set HF_TOKEN"
    except errors.HFValidationError:
        message, help = f"`{id}` is not an id of the Hub", "an id has the form `organisation/name`"
    except errors.OfflineModeIsEnabled:
        asked = os.environ.get("RUNNER_OFFLINE") == "1"
        who = "--offline" if asked else "HF_HUB_OFFLINE"
        message = f"the {noun} `{id}`{at} is not in the local cache, and {who} forbids the network"
        help = f"{'leave out' if asked else 'unset'} {who}, or download it elsewhere and name its folder"
    except unreached as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"the {noun} `{id}`{at} is not in the local cache, and the Hub cannot be reached: {reason}"
        help = (
            f"check the network, or download it elsewhere (`hf download {id}"
            f"{' --repo-type dataset' if noun == 'dataset' else ''}`) and name its folder"
        )
    else:
        return
    raise RecipeError([Diagnostic("R431", message, help)])

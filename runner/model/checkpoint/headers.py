"""Reads config.json and the headers of safetensors files, without their data, with the standard library.

A safetensors file is 8 bytes (length of the header, little endian), the header (JSON: name → dtype, shape,
data_offsets relative to the end of the header), then the data without holes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner.contracts.facts import DTYPE_BYTES, TensorHeader
from runner.contracts.model_config import ModelConfig
from runner.errors import Diagnostic, RecipeError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_HEADER_LIMIT = 100_000_000  # the format's own limit
_LFS_POINTER = b"version "  # the beginning of the text that Git LFS leaves in place of a file
_ADAPTER = "adapter_config.json"
_SHOWN = 3  # names shown of a long list


def model_config(folder: Path) -> ModelConfig:
    """What config.json of a checkpoint says of its model."""
    return ModelConfig.of(read_config(folder))


def weights_nbytes(folder: Path) -> int:
    """Return the size of the weight files of a checkpoint."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint as a mapping."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise _missing_config(folder) from None
    except (OSError, ValueError) as error:
        raise _error("R432", f"`{path}` cannot be read as JSON: {error}", "download the checkpoint again") from None
    if not isinstance(config, dict):
        raise _error("R432", f"`{path}` must hold a JSON object; it holds a {type(config).__name__}")
    return config


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Return every tensor of a checkpoint, in the order of shards and of bytes.

    Raises RecipeError with all complaints about the files at once.
    """
    if (folder / SINGLE).is_file():
        if (folder / INDEX).is_file() and set(read_index(folder).values()) != {SINGLE}:
            raise _error(
                "R416",
                f"`{folder}` holds its weights twice: in `{SINGLE}`, and in the files that `{INDEX}` names",
                "remove those that are not meant: readers differ in which they take",
            )
        return read_shard(folder, SINGLE)
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    weight_map = read_index(folder)
    complaints: list[Diagnostic] = []
    tensors: dict[str, TensorHeader] = {}
    for shard in sorted(set(weight_map.values())):
        listed = [name for name, file in weight_map.items() if file == shard]
        if not (folder / shard).is_file():
            complaints.append(
                Diagnostic(
                    "R434",
                    f"`{folder / shard}` is missing; `{INDEX}` lists {_count(len(listed), 'tensor')} in it",
                    "download that file again, or copy it to the others",
                )
            )
            continue
        try:
            found = read_shard(folder, shard)
        except RecipeError as error:
            complaints.extend(error.diagnostics)
            continue
        absent = sorted(name for name in listed if name not in found)
        if absent:
            complaints.append(
                Diagnostic(
                    "R437",
                    f"`{folder / shard}` does not hold {_names(absent)}, which `{INDEX}` places there",
                    "the index and the shards come from different downloads; download the checkpoint again",
                )
            )
        complaints += _strays(folder / shard, [name for name in found if weight_map.get(name) != shard], weight_map)
        tensors.update({name: header for name, header in found.items() if weight_map.get(name) == shard})
    if complaints:
        raise RecipeError(complaints)
    return tensors


def _strays(path: Path, names: list[str], weight_map: Mapping[str, str]) -> list[Diagnostic]:
    """Return a complaint about tensors of a shard that the index does not place there.

    Some readers load them all the same.
    """
    if not names:
        return []
    name = names[0]
    placed = f"places it in `{weight_map[name]}`" if name in weight_map else "does not list it"
    more = f"; {_count(len(names) - 1, 'more tensor')} like that" if len(names) > 1 else ""
    help = "the index and the shards come from different downloads; download the checkpoint again"
    return [Diagnostic("R416", f"`{path}` holds `{name}`, and `{INDEX}` {placed}{more}", help)]


def read_shard(folder: Path, shard: str) -> dict[str, TensorHeader]:
    """Return the tensors of one safetensors file, in the order of their bytes."""
    path = folder / shard
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if start == _LFS_POINTER:
                raise _error(
                    "R436",
                    f"`{path}` is a pointer of Git LFS, not the weights themselves",
                    "fetch them: `git lfs pull` in that folder, or download the file",
                )
            if size < 8:
                raise _error(
                    "R435", f"`{path}` is truncated: it has {size} bytes, a safetensors file at least 8", _AGAIN
                )
            if length > _HEADER_LIMIT:
                raise _corrupt(path, f"its first 8 bytes give the header {length:,} bytes")
            if 8 + length > size:
                raise _error(
                    "R435", f"`{path}` is truncated: its header has {length:,} bytes, the file {size:,} in all", _AGAIN
                )
            raw = file.read(length)
    except OSError as error:
        raise _error("R436", f"`{path}` cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(raw)
    except ValueError:
        raise _corrupt(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _corrupt(path, f"its header is a {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    tensors = [_tensor(path, shard, 8 + length, name, entry) for name, entry in header.items()]
    tensors.sort(key=lambda t: (t.begin, t.end, t.name))
    for before, after in pairwise(tensors):
        if after.begin < before.end:
            raise _corrupt(
                path,
                f"`{before.name}` takes the bytes {before.begin:,} to {before.end:,} and `{after.name}` "
                f"{after.begin:,} to {after.end:,}, which overlap",
            )
    end = max((t.end for t in tensors), default=8 + length)
    if end > size:
        last = next(t for t in tensors if t.end > size)
        raise _error(
            "R435",
            f"`{path}` is truncated: its header describes {end:,} bytes, the file has {size:,}; "
            f"`{last.name}` is the first tensor that is cut off",
            _AGAIN,
        )
    if end < size:
        raise _corrupt(path, f"its header describes {end:,} bytes, the file has {size:,}")
    return {t.name: t for t in tensors}


_AGAIN = "download that file again, or copy it from an intact source"


def _error(code: str, message: str, help: str | None = None) -> RecipeError:
    return RecipeError([Diagnostic(code, message, help)])


def _corrupt(path: Path, why: str) -> RecipeError:
    return _error("R436", f"`{path}` is not a sound safetensors file: {why}", _AGAIN)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _names(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def _tensor(path: Path, shard: str, base: int, name: str, entry: Any) -> TensorHeader:
    """Return one entry of a header, after checking that its bytes are those of its dtype and shape."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)) and begin <= end
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise _corrupt(path, f"the entry of `{name}` needs dtype, shape and data_offsets; it is {json.dumps(entry)}")
    if dtype not in DTYPE_BYTES:
        raise _error(
            "R438",
            f"`{name}` in `{path}` has the dtype {dtype}; known are {', '.join(DTYPE_BYTES)}",
            "save the checkpoint in bfloat16, float16 or float32",
        )
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise _error(
            "R439",
            f"`{name}` in `{path}` has {end - begin:,} bytes; {dtype} of shape {list(shape)} takes {expected:,}",
            _AGAIN,
        )
    return TensorHeader(name, dtype, shape, shard, base + begin, base + end)


def read_index(folder: Path) -> Mapping[str, str]:
    """Return the `weight_map` of a sharded checkpoint: tensor → file of the same folder."""
    path = folder / INDEX
    weight_map: dict[str, str] = {}
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        sound = isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values())
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound or not weight_map:
        raise _error(
            "R436", f"`{path}` must be JSON with a `weight_map` from the name of each tensor to its file", _AGAIN
        )
    outside = sorted({file for file in weight_map.values() if Path(file).name != file})
    if outside:
        raise _error("R436", f"`{path}` names `{outside[0]}`; a shard must be a file of the same folder")
    return weight_map


def _missing_config(folder: Path) -> RecipeError:
    if (folder / _ADAPTER).is_file():
        return _adapter(folder, f"`{folder}` holds an adapter ({_ADAPTER}), not a model")
    gguf = [name for name in _foreign(folder) if name.endswith(".gguf")]
    if gguf:
        message = f"`{folder}` holds a GGUF file (`{gguf[0]}`), not a checkpoint of transformers"
        return _error("R432", message, _conversion(folder, gguf[0]))
    return _error(
        "R432",
        f"`{folder}` has no config.json, so it is not a checkpoint of transformers",
        "name the folder that holds config.json and the safetensors files",
    )


_FOREIGN = {".bin": "PyTorch", ".pt": "PyTorch", ".pth": "PyTorch", ".gguf": "GGUF", ".h5": "TensorFlow"}


def _foreign(folder: Path) -> list[str]:
    """Return the files of weights that are not safetensors."""
    return sorted(
        file.name for file in folder.iterdir() if file.suffix in _FOREIGN and file.name != "training_args.bin"
    )


def _conversion(folder: Path, file: str) -> str:
    """Return how to convert a file of weights to safetensors."""
    if file.endswith(".h5"):  # transformers 5 does not read TensorFlow files
        return "name a checkpoint of the model in safetensors files"
    if file.endswith(".gguf"):
        return f"name the file: `{folder / file}`; a model that was quantized there stays as lossy as it is"
    return (
        'convert it: `python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"M.from_pretrained('{folder}').save_pretrained('converted'); "
        f"T.from_pretrained('{folder}').save_pretrained('converted')\"` and name the folder `converted`"
    )


def _adapter(folder: Path, message: str) -> RecipeError:
    merged = (
        '`python -c "from peft import AutoPeftModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').merge_and_unload().save_pretrained('merged')\"`"
    )
    return _error(
        "R432", message, f"merge the adapter into its base model ({merged}) and name the folder of the result"
    )


def refuse_adapter_of_another(folder: Path) -> None:
    """Raise RecipeError where a folder with the weights of a model also has an adapter_config.json.

    transformers takes the model that adapter_config.json names, not the weights of the folder.
    """
    if (folder / _ADAPTER).is_file():
        raise _error(
            "R432",
            f"`{folder}` holds both the weights of a model and an adapter ({_ADAPTER}), which transformers would apply "
            "to another model",
            f"remove {_ADAPTER} if the adapter is merged already, or merge it into its base model first",
        )


def _no_weights(folder: Path) -> RecipeError:
    if (folder / _ADAPTER).is_file():
        return _adapter(
            folder, f"`{folder}` holds an adapter ({_ADAPTER}) and no weights of a model; its config.json is the base's"
        )
    others = _foreign(folder)
    if others:
        kind = _FOREIGN[Path(others[0]).suffix]
        return _error(
            "R433",
            f"`{folder}` holds its weights in {kind} files only ({_names(others)}); safetensors files are needed",
            _conversion(folder, others[0]),
        )
    return _error(
        "R433",
        f"`{folder}` holds no weights: neither `{SINGLE}` nor `{INDEX}` is there",
        "download the safetensors files of the model into that folder",
    )

"""Make a dense checkpoint of one with low-precision weights: `python -m runner.model.layerwise.unpacked_checkpoint`.

The request on standard input is JSON: `folder`, and `out`, an empty folder. One tensor is in memory at a time; what is
not packed keeps its bytes, and so does an adapter. The answer is JSON: `problem`, why the weights cannot be unpacked
("" for none), and `help`.
`runner.model.source.unpacked` asks.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from runner.contracts.account import Account
from runner.errors import RecipeError, StepFailed
from runner.model.checkpoint import adapter_config, derived, unpacking
from runner.model.checkpoint.headers import read_config
from runner.model.checkpoint.reader import DTYPES, CheckpointReader, require_finite
from runner.model.checkpoint.writer import CheckpointWriter, parse_size
from runner.system import answering

_SHARD = "5GB"  # as transformers writes


def main() -> None:
    answering.answer(convert)


def convert(request: Mapping[str, str]) -> dict[str, str]:
    """Answer a request (see above)."""
    try:
        write(Path(request["folder"]), Path(request["out"]))
    except unpacking.Unreadable as error:
        return {"problem": str(error), "help": "download the checkpoint again"}
    except StepFailed as error:
        return {"problem": error.message, "help": error.help or ""}
    except RecipeError as error:
        return {"problem": error.diagnostics[0].message, "help": error.diagnostics[0].help or ""}
    return {"problem": "", "help": ""}


def write(folder: Path, out: Path) -> Account:
    """Write the dense checkpoint that the one in `folder` stands for, and return the account of its stored tensors."""
    config = read_config(folder)
    unpacker = unpacking.find(config)
    if unpacker is None:
        raise unpacking.Unreadable("is not stored in a way that is known")
    with CheckpointReader(folder) as reader:
        dense = unpacking.dense(unpacker, config, reader.headers, unpacking.peek_in(folder, reader.headers))
        parts = CheckpointWriter(out / "parts")
        changed: dict[str, tuple[str, ...]] = {}
        for number, weight in enumerate(dense.weights):
            made = unpacker.unpack(weight, dense.quantization, reader.headers, reader.read)
            if tuple(made.shape) != weight.shape:
                raise unpacking.Unreadable(f"unpacks `{weight.name}` to {list(made.shape)}, not {list(weight.shape)}")
            tensor = made.to(DTYPES[dense.dtype])
            require_finite(tensor, weight.name, f"the unpacked weights of {folder}")
            parts.add(f"unpacked-{number:06d}", {weight.name: tensor})
            changed |= dict.fromkeys((*weight.sources, *weight.extra), (weight.name,))
        parts.copy("rest", reader, [name for name in reader.headers if name not in changed])
        tensors = derived.Parts(parts, parse_size(_SHARD), changed)
        account = derived.write(reader, derived.Derived(tensors, dense.config), out)
    if (folder / adapter_config.FOLDER).is_dir():
        shutil.copytree(folder / adapter_config.FOLDER, out / adapter_config.FOLDER, dirs_exist_ok=True)
    for path in sorted(parts.folder.iterdir()):
        path.unlink()
    parts.folder.rmdir()
    return account


if __name__ == "__main__":
    main()

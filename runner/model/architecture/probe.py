"""Ask transformers about a checkpoint, once: `description` is what `validate` and `plan` know of its model.

The answer comes from a process of its own (`runner.model.layerwise.describe`), since transformers takes seconds to
import, and is kept in the user's cache by the digest of everything it depends on: config.json, the files
that accompany the weights, the names and shapes of the tensors, the program that answers, the versions of torch and
transformers, and the model's own code where that may run. A process that has torch at hand answers itself after
`answer_with`.

`runner.model.architecture.model_complaints` turns an answer into the complaints of `validate` and `plan`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.contracts import model_description
from runner.contracts.facts import TensorHeader
from runner.contracts.model_description import ModelDescription
from runner.errors import MachineError
from runner.model.architecture import remote_code, supported
from runner.model.checkpoint import headers
from runner.model.checkpoint.companions import companion_files
from runner.recipe.origins import cache

PROGRAM = "runner.model.layerwise.describe"
# The many objects of torch and transformers live as long as the process; looking for garbage among them takes a third
# of the time of their import.
_RUN = f"import gc; gc.disable(); from {PROGRAM} import main; main()"
_SOURCES = (  # of the program
    "layerwise/attention_caches.py", "layerwise/conversions.py", "layerwise/describe.py", "layerwise/expert_stream.py",
    "layerwise/handed_values.py",
    "layerwise/layer_arguments.py", "layerwise/linear_calls.py", "layerwise/layer_list.py", "layerwise/layer_probes.py",
    "layerwise/mixtures.py", "layerwise/outside_layers.py", "layerwise/refusals.py", "layerwise/stream_check.py",
    "layerwise/tensor_names.py", "layerwise/towers.py", "layerwise/empty_model.py", "architecture/supported.py",
    "checkpoint/quantization/cache_scheme.py", "architecture/tied_weights.py",
)  # fmt: skip
_PROGRAM_FOLDER = Path(__file__).resolve().parents[1]
_SECONDS = 900

Request = Mapping[str, Any]
Answer = Mapping[str, Any]


def description(
    folder: Path, tensors: Mapping[str, TensorHeader], packed: Mapping[str, tuple[int, ...]] | None = None
) -> ModelDescription:
    """What transformers makes of the config.json of a folder and of tensors of these names and shapes.

    `packed` has the shapes of weights that are stored packed, by the names of plain ones.
    """
    own_code = supported.runs_own_code(headers.read_config(folder))
    request = {
        "folder": str(folder),
        "tensors": {name: list(header.shape) for name, header in tensors.items()},
        "packed": {name: list(shape) for name, shape in (packed or {}).items()},
        "own_code": own_code,
    }
    path = cache.folder("models") / f"{_digest(folder, request)}.json"
    try:
        return model_description.from_json(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        answer = _answer(request)
    _keep(path, answer)
    return model_description.from_json(answer)


def answer_with(describe: Callable[[Request], Answer]) -> None:
    """Have requests of this process answered by a function, `runner.model.layerwise.describe.describe`."""
    global _answer
    _answer = describe


def _ask(request: Request) -> Answer:
    """Have a process of its own answer."""
    asked = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps(request), capture_output=True, text=True, timeout=_SECONDS, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if asked.returncode != 0:
        last = asked.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise MachineError(
            f"transformers cannot be asked about the model: {PROGRAM} ended with {asked.returncode}: {last[0]}",
            "`runner doctor` shows the installation",
        )
    answer: Answer = json.loads(asked.stdout)
    return answer


_answer = _ask


def _digest(folder: Path, request: Request) -> str:
    """sha256 of all that the answer depends on."""
    code = sorted(folder.glob(remote_code.CODE)) if request["own_code"] else []
    files = [
        path
        for path in (folder / "config.json", *(folder / name for name in companion_files(folder)), *code)
        if path.is_file()
    ]
    facts = {
        "program": [hashlib.sha256((_PROGRAM_FOLDER / name).read_bytes()).hexdigest() for name in _SOURCES],
        "files": {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "tensors": request["tensors"],
        "packed": request["packed"],
        "own_code": request["own_code"],
        "packages": {package: metadata.version(package) for package in ("torch", "transformers", "accelerate")},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _keep(path: Path, answer: Answer) -> None:
    """Write the cache; where that is not possible, the next plan asks again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    except OSError:
        return
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(answer, file)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)

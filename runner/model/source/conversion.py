"""Make a checkpoint of another form of a model once, in the user's cache, by a program in a process of its own.

A folder of the cache is named by a digest of what it was made from and by what; it is published whole.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import MachineError
from runner.recipe.origins import cache

_FOLDER = "sources"
# As for asking transformers about a model: its many objects live as long as the process.
_RUN = "import gc; gc.disable(); from {program} import main; main()"


def place(digest: str) -> Path:
    """Return the folder of a made checkpoint; it need not exist yet."""
    return cache.folder(_FOLDER) / digest


def make(program: str, digest: str, request: Mapping[str, Any], nbytes: int) -> Mapping[str, str]:
    """Have a program fill the folder `place(digest)`, and return its answer; "problem" in it means that it could not.

    The request gets the folder as `out`. Raises MachineError where there is no room for `nbytes`, or the program fails.
    """
    target = place(digest)
    staged = cache.staging(target.parent)
    try:
        free = shutil.disk_usage(staged).free
        if free < nbytes:
            raise MachineError(
                f"the checkpoint that is made of the model takes {nbytes / 1e9:.1f} GB in {target.parent}; "
                f"{free / 1e9:.1f} GB are free there",
                "free some room, or set XDG_CACHE_HOME to a folder on another disk",
            )
        answer = _ask(program, {**request, "out": str(staged)})
        if not answer["problem"]:
            cache.publish(staged, target)
        return answer
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _ask(program: str, request: Mapping[str, Any]) -> Mapping[str, str]:
    asked = subprocess.run(
        [sys.executable, "-c", _RUN.format(program=program)],
        input=json.dumps(request), capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if asked.returncode != 0:
        last = asked.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise MachineError(
            f"a checkpoint cannot be made of the model: {program} ended with {asked.returncode}: {last[0]}",
            "`runner doctor` shows the installation",
        )
    answer: Mapping[str, str] = json.loads(asked.stdout)
    return answer

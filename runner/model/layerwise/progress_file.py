"""How far a streamed step has come: the file that a killed step is resumed from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Progress:
    """`layer` layers of `layers` are finished; `hidden` holds the digest of each lane's next input.

    `results` is what the finished layers said of themselves, for the record.
    """

    layers: int
    layer: int = 0
    hidden: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Replace the file at once, so that a reader sees the old state or the new one."""
        temporary = path.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def load(path: Path, layers: int) -> Progress:
    """The saved state, or a fresh one where there is none, it is torn, or it belongs to another number of layers."""
    try:
        saved = Progress(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return Progress(layers)
    return saved if saved.layers == layers and 0 <= saved.layer <= layers else Progress(layers)

"""What tests of distillation share: a step that is stopped on its way, and what its checkpoints say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from runner.errors import Interrupted
from runner.training import losses
from tests.host import Host


class Stopping(Host):
    """Interrupted at the first safe point after as many events of some name as the class says."""

    event, count = "", 0

    @staticmethod
    def after(**events: int) -> type[Host]:
        ((event, count),) = events.items()
        return type("StoppingThere", (Stopping,), {"event": event, "count": count})

    def safe_point(self) -> None:
        if sum(each["event"] == self.event for each in self.events) >= self.count:
            raise Interrupted("stopped")


def model_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def kl(teacher: Path, student: Path, ids: torch.Tensor) -> float:
    """KL(teacher ‖ student) in nats per token."""
    with torch.no_grad():
        theirs, ours = (model_of(folder)(input_ids=ids).logits for folder in (teacher, student))
        return float(losses.soft(ours, theirs, 1.0, "forward"))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}

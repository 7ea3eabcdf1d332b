"""A plain next-token training of a tiny model, and a context that counts its safe points."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from runner.contracts.lineage import AppliedStep
from runner.errors import Interrupted
from runner.training.run import prepare
from runner.training.task import Batch, Task
from tests import tiny


@dataclass
class Plain:
    """Next-token cross entropy; the loss of step `poison` is NaN, step `hungry` asks for a petabyte."""

    model: nn.Module
    poison: int | None = None
    hungry: int | None = None
    pause: float = 0.0
    steps: int = 0

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch.ids[:, 1:].flatten())
        if self.hungry is not None and self.steps + 1 == self.hungry:
            torch.empty(2**50, dtype=torch.uint8)
        if self.poison is not None and self.steps + 1 == self.poison:
            loss = loss * float("nan")
        return loss, {"double": 2 * loss}

    def stepped(self, step: int) -> None:
        self.steps = step
        time.sleep(self.pause)


def build(arguments: Mapping[str, Any], device: str) -> Plain:
    """`folder` of a checkpoint; `config` changes it; `only` trains the parameters whose names end so."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(arguments["folder"], **arguments.get("config", {}))
    model.to(device)
    if "only" in arguments:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(arguments["only"]))
    return Plain(model, arguments.get("poison"), arguments.get("hungry"), arguments.get("pause", 0.0))


class Caller:
    """A context that is interrupted at its `stop_at`-th safe point, and at every later one."""

    def __init__(self, folder: Path, stop_at: int | None = None, processes: int = 1, **params: Any) -> None:
        self.params: Mapping[str, Any] = params
        self.step = AppliedStep("training", "test.training", params)
        self.inputs: Mapping[str, Any] = {}
        self.out_dir, self.scratch_dir = folder / "out", folder / "scratch"
        for path in (self.out_dir, self.scratch_dir):
            path.mkdir(parents=True, exist_ok=True)
        self.cache_dir = folder / "cache"
        self.seed, self.device, self.threads, self.processes = 3, "cpu", 1, processes
        self.recipe_text = "version: 1\nname: test\n"
        self.limits: Mapping[str, float] = {}
        self.stop_at, self.asked = stop_at, 0
        self.events: list[dict[str, Any]] = []

    def data(self, parameter: str) -> torch.Tensor:
        return tiny.tokens(20, 16)[: 20 if parameter == "data" else 5]

    def files(self, parameter: str) -> Any:
        raise NotImplementedError

    def images(self, parameter: str) -> None:
        return None

    def data_facts(self, parameter: str) -> Any:
        raise NotImplementedError

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def safe_point(self) -> None:
        self.asked += 1
        if self.stop_at is not None and self.asked >= self.stop_at:
            raise Interrupted("stopped")


PARAMS: dict[str, Any] = {
    "data": "text", "steps": 12, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 1e-2,
    "learning_rate_schedule": "cosine", "warmup": 0.17, "weight_decay": 0.01, "max_grad_norm": 1.0,
    "precision": "fp32", "gradient_checkpointing": False, "evaluate_every": 4, "save_every": 5,
}  # fmt: skip


def task(ctx: Caller, model: Path, evaluated: bool = False, arguments: Mapping[str, Any] = {}, **changes: Any) -> Task:
    """The task of a training of the checkpoint `model`, with these settings changed."""
    params = PARAMS | ({"evaluation": "text"} if evaluated else {})
    made = prepare(ctx, "tests.training.plain:build", {"folder": str(model), **arguments}, params=params)
    return replace(made, settings=replace(made.settings, **changes))


def main(folder: str, model: str, kill_at: str, how: str) -> None:
    """Train, and die by SIGKILL when step `kill_at` is told; with "sealing" while its checkpoint is made to count.

    With "processes" two train, and the one that started them dies.
    """
    from runner.training import training_checkpoints
    from runner.training.run import fit

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Dying(Caller):
        def emit(self, event: str, **fields: Any) -> None:
            if fields["at"] == int(kill_at):
                die()

    if how == "sealing":
        write = training_checkpoints.write_json
        training_checkpoints.write_json = lambda path, value: (
            die()
            if path.name == training_checkpoints.MARKER and path.parent.name.endswith(kill_at)
            else write(path, value)
        )
    ctx = Dying(Path(folder), processes=2 if how == "processes" else 1)
    torch.set_num_threads(1)
    fit(ctx, task(ctx, Path(model), evaluated=True, arguments={"pause": 0.5} if how == "processes" else {}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A builder whose processes shard the model with FSDP2 on the CPU, which accelerate itself does on GPUs alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.training.trainer import FitTrainer
from tests.training import plain


def build(arguments: Mapping[str, Any], device: str) -> plain.Plain:
    """Only for processes of their own: accelerate is changed for good."""
    import accelerate.state
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor

    state: Any = accelerate.state.AcceleratorState
    begin, evaluate = state.__init__, FitTrainer.evaluate_state

    def begun(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, kwargs["fsdp_plugin"]

    def evaluated(self: FitTrainer) -> float:
        if not isinstance(next(self.trainable.model.parameters()), DTensor):
            raise RuntimeError("the model is not sharded")
        return evaluate(self)

    state.__init__ = begun
    FitTrainer.evaluate_state = evaluated  # type: ignore[method-assign]
    return plain.build(arguments, device)

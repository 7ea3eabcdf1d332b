"""What a module of `runner.model.checkpoint.unpacking` holds: a way of storing weights in low precision, read only.

It says from headers which dense tensors stand behind the stored ones, and computes one of them. Imports no torch;
`unpack` imports it inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from runner.contracts.facts import TensorHeader

if TYPE_CHECKING:
    import torch

Config = Mapping[str, Any]  # the `quantization_config` of config.json
Headers = Mapping[str, TensorHeader]
Peek = Callable[[str], bytes]  # the bytes of a small stored tensor
Read = Callable[[str], "torch.Tensor"]


class Unreadable(ValueError):
    """Stored tensors that cannot be read as the numbers they stand for; a phrase that follows the model's name."""


@dataclass(frozen=True)
class Weight:
    """A dense tensor, and the stored ones that it is computed from; `extra` are stored with it and not needed.

    Some ways of storing give a weight another name or another order of axes than the model has.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    extra: tuple[str, ...] = ()


class Unpacker(Protocol):
    """A module of `runner.model.checkpoint.unpacking`.

    NAME   what messages call it: "AWQ"
    PEEKS  whether `weights` reads small tensors, so that headers alone do not suffice
    """

    NAME: str
    PEEKS: bool

    def holds(self, config: Config) -> bool:
        """Whether a `quantization_config` names this way of storing."""
        ...

    def weights(self, config: Config, tensors: Headers, peek: Peek) -> list[Weight]:
        """The dense tensors. Raises Unreadable."""
        ...

    def unpack(self, weight: Weight, config: Config, tensors: Headers, read: Read) -> torch.Tensor:
        """One dense tensor in float32, exact wherever float32 holds the product of code and scale."""
        ...

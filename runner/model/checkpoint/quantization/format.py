"""What a module of `runner.model.checkpoint.formats` holds: one on-disk format of quantized weights, as a protocol.

A format answers the planner (what it can hold, which tensors it writes, who reads it) without torch; `pack` and
`unpack` import torch inside. docs/writing-a-format.md builds one step by step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from runner.contracts.facts import TensorHeader
from runner.model.checkpoint.quantization.cache_scheme import CacheScheme
from runner.model.checkpoint.quantization.scheme import Scheme

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized

Config = Mapping[str, Any]  # the `quantization_config` of config.json
Headers = Mapping[str, TensorHeader]
Read = Callable[[str], "torch.Tensor"]
TensorTypes = dict[str, tuple[str, tuple[int, ...]]]  # tensor's name → (safetensors dtype, shape)


class Matrix(NamedTuple):
    """The weight of a linear layer: its outputs, its inputs, and whether the module keeps it as [in, out] (GPT-2).

    dtype  the safetensors dtype in which it is stored before it is quantized; "" where that does not matter
    """

    rows: int
    columns: int
    transposed: bool = False
    dtype: str = ""


class Stored(NamedTuple):
    """How a module is stored: the name of a format, and a scheme."""

    format: str
    scheme: Scheme


class Refusal(NamedTuple):
    """Why a format cannot hold something, and what to do: phrases that follow the module's name."""

    problem: str
    remedy: str


@dataclass(frozen=True)
class Rules:
    """Which modules a `quantization_config` says are stored in a format, and with which scheme.

    exact, matched  (regular expression, scheme), the first match wins, all of `exact` before any of `matched`; the
                    scheme None: not quantized
    default         the scheme of every other linear module
    """

    exact: tuple[tuple[str, Scheme | None], ...] = ()
    matched: tuple[tuple[str, Scheme | None], ...] = ()
    default: Scheme | None = None


@dataclass(frozen=True)
class Packing:
    """A `quantization_config` read back.

    formats  the formats of its modules, most often one; none where only the cache is rounded
    cache    how servers round keys and values; None: they do not
    """

    formats: tuple[str, ...]
    rules: Rules
    config: Config = field(default_factory=dict)
    cache: CacheScheme | None = None

    def scheme(self, module: str) -> Scheme | None:
        """The scheme of a module, by its checkpoint name; meaningful for modules whose tensors are packed."""
        for pattern, scheme in (*self.rules.exact, *self.rules.matched):
            if re.match(pattern, module):
                return scheme
        return self.rules.default


@dataclass(frozen=True)
class Reader:
    """A program that loads a format.

    name      "transformers", "vLLM", "gptqmodel"
    packages  what must be installed beside it, as pip takes it
    tried     the versions with which loading was tried
    limit     why it cannot load these schemes, a whole sentence; "" where it can
    load      Python that loads the folder `{folder}`, where it is not transformers' usual way
    note      advice for some machines, a whole sentence
    fuses     it multiplies q, k and v as one matrix, and gate and up, which must then be stored alike
    """

    name: str
    packages: str = ""
    tried: str = ""
    limit: str = ""
    load: str = ""
    note: str = ""
    fuses: bool = False


class Format(Protocol):
    """A module of `runner.model.checkpoint.formats`.

    NAME    what recipes, configs and messages call it: "pack-quantized"
    TAG     what the Hub calls checkpoints of its kind
    WEIGHT  the last part of the name of the tensor that holds the codes of a module: "weight_packed"
    SCALE   and of the one that holds its scales
    FILES   further JSON files of a checkpoint that repeat its `quantization_config`
    """

    NAME: str
    TAG: str
    WEIGHT: str
    SCALE: str
    FILES: tuple[str, ...]

    def holds(self, tensors: Headers, module: str) -> bool:
        """Whether the tensors of a module are stored in this format."""
        ...

    def parse(self, config: Config) -> Rules | None:
        """What a `quantization_config` says of modules in this format; None where it names another.

        Raises KeyError, TypeError, AttributeError or ValueError where it cannot be understood.
        """
        ...

    def shape(self, tensors: Headers, module: str, scheme: Scheme) -> tuple[int, int]:
        """[out, in] of a stored weight, from its headers."""
        ...

    def refuse(self, scheme: Scheme, matrix: Matrix) -> Refusal | None:
        """Why a weight cannot be stored with a scheme; None: it can."""
        ...

    def refuse_together(self, schemes: Iterable[Scheme]) -> Refusal | None:
        """Why transformers cannot load these schemes in one checkpoint; None: it can."""
        ...

    def scale_dtype(self, scheme: Scheme, weight_dtype: str) -> str:
        """The safetensors dtype of scales, given that of the weights that are quantized ("BF16", "F16", "F32")."""
        ...

    def tensors(self, module: str, scheme: Scheme, matrix: Matrix, weight_dtype: str) -> TensorTypes:
        """The tensors that `pack` writes for a module, by full name."""
        ...

    def config(
        self, schemes: Mapping[str, Scheme], untouched: Iterable[str] = (), *, act_order: bool = False
    ) -> dict[str, Any]:
        """The `quantization_config` of a checkpoint: `schemes` names its packed modules, `untouched` all other ones."""
        ...

    def readers(self, schemes: Iterable[Scheme], transposed: bool = False) -> tuple[Reader, ...]:
        """Who loads a checkpoint with these schemes, and who does not; the first is the usual one."""
        ...

    def pack(self, module: str, weight: Quantized, config: Config) -> dict[str, torch.Tensor]:
        """The tensors to store for a module of a checkpoint with this `quantization_config`, by full name."""
        ...

    def store_scale(self, weight: Quantized) -> torch.Tensor:
        """The scales of a weight as `pack` stores them under SCALE."""
        ...

    def input_scale(self, module: str, scheme: Scheme, read: Read) -> torch.Tensor | None:
        """The calibrated scale of a module's inputs, as `Quantized.input_scale`; None where there is none."""
        ...

    def unpack(self, module: str, scheme: Scheme, config: Config, read: Read) -> Quantized:
        """The inverse of `pack`; `read` gives a tensor by name. ValueError where the tensors do not fit the scheme."""
        ...

"""What a layer-wise method is given and what it gives back. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from runner.model.checkpoint.quantization.quantized import Quantized
    from runner.model.checkpoint.quantization.scheme import Numbers

STATISTICS = ("none", "input_range", "input_norms", "hessian", "cross")


@dataclass(frozen=True)
class Linear:
    """A linear module, or several that see the same input stacked along their rows.

    weight   float32 [out, in], not to be changed; as it is stored for a method that asks for no statistics
    names    the modules' names in the checkpoint
    dtype    the floating type the checkpoint stores weights in
    largest  the largest |weight| of these and of all modules that share a scale with them; None: they share none
    """

    names: tuple[str, ...]
    weight: torch.Tensor
    dtype: torch.dtype
    largest: torch.Tensor | None = None

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class Statistics:
    """What the calibration inputs X [tokens, in] of a linear say, as far as the method asked for it.

    largest_input  float32 scalar: the largest |X|; there with every other statistic, and alone as "input_range"
    input_norms  float32 [in]: the Euclidean norm of each input column
    hessian      float32 [in, in]: (2 / tokens) · XᵀX
    cross        float32 [in, in]: (2 / n) · (X_dense − X)ᵀ X, X_dense the inputs of the unchanged model, of n tokens:
                 see runner.model.layerwise.paired_lanes
    """

    tokens: int = 0
    largest_input: torch.Tensor | None = None
    input_norms: torch.Tensor | None = None
    hessian: torch.Tensor | None = None
    cross: torch.Tensor | None = None

    def of(self, name: str) -> torch.Tensor:
        """The named statistic; ValueError where the method did not ask for it."""
        found: torch.Tensor | None = getattr(self, name)
        if found is None:
            raise ValueError(f"the method did not ask for the statistic {name!r}")
        return found


@dataclass(frozen=True)
class Transformed:
    """The new weight: `weight` float [out, in] for a dense checkpoint, or `quantized`. Or the weight stays, and what is

    `added` to it acts beside it: (A [r, in], B [out, r]) of a term B A. `metrics` go into the record; `error`, where
    given, is the relative squared error of the layer's output, tr(E H Eᵀ) / tr(W H Wᵀ). `positions` float32 [out, in],
    for a method that goes on over blocks: what `quantized` was rounded from, in steps of its scale.
    """

    weight: torch.Tensor | None = None
    quantized: Quantized | None = None
    positions: torch.Tensor | None = None
    added: tuple[torch.Tensor, torch.Tensor] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def noting(self, metrics: Mapping[str, float]) -> Transformed:
        """The same with further metrics."""
        return replace(self, metrics={**self.metrics, **metrics})


Results = list[dict[str, Any]]  # what the record says of each finished layer, in order
Options = Mapping[str, Any]  # of one module, for `transform` alone: the stream only compares them
Transform = Callable[[Linear, Statistics, Options], Transformed]


class Block(Protocol):
    """A decoder layer as a function of the weights of its linears, compared with the layer of the unchanged model.

    Its error is the mean over tokens of ‖layer(x) − layer₀(x₀)‖² / ‖layer₀(x₀)‖², x what enters the layer after earlier
    ones were changed and x₀ what entered it before. Calibration windows come in batches, by number. Weights are those
    of `parameter`, which may be written.
    """

    @property
    def index(self) -> int:
        """Return the number of the layer."""
        ...

    @property
    def batches(self) -> int:
        """Return the number of batches."""
        ...

    def parameter(self, name: str) -> torch.Tensor:
        """Return the weight [out, in] of a linear, by its name in the checkpoint, in the type of the forward."""
        ...

    def round_inputs(self, name: str, numbers: Numbers, scale: torch.Tensor | None = None) -> None:
        """Round what a linear is multiplied with, as a server will, by a calibrated `scale` [1] or its own.

        Gradients pass as if it were not rounded.
        """
        ...

    def loss(self, batches: Sequence[int]) -> float:
        """Return the error over some batches."""
        ...

    def gradients(self, batches: Sequence[int]) -> Mapping[str, torch.Tensor]:
        """Return what the squared error over some batches has as gradient, up to a factor, by weight [out, in]."""
        ...


BlockTransform = Callable[[Block, Mapping[str, Transformed]], Mapping[str, Transformed]]


@dataclass(frozen=True)
class Method:
    """A method as the stream runs it on one checkpoint.

    options      by the name that a linear module has in the checkpoint; modules that are not here stay as they are
    statistics   what to collect: a name of STATISTICS
    compared_every  of so many batches one is compared with the unchanged model for "cross"
    stacked      rows are independent of each other: linears with one input and equal options are solved as one
    sequential   inputs of a group come from the layer with the earlier groups already changed
    shares_scale  module → the other modules whose weights share a global scale with its own
    experts      "routed": an expert's statistics are those of the tokens routed to it; "all": those of all tokens
    least_tokens experts that see fewer are changed by `fallback`, as are those that see none
    fallback     what needs no statistics
    block        goes on with a layer, as a whole and with gradients, after `transform` changed its linears; it is given
                 what that made of them, and what it returns is the result
    """

    transform: Transform
    options: Mapping[str, Options]
    statistics: str = "none"
    compared_every: int = 1
    stacked: bool = False
    sequential: bool = True
    shares_scale: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    experts: str = "routed"
    least_tokens: int = 0
    fallback: Transform | None = None
    block: BlockTransform | None = None

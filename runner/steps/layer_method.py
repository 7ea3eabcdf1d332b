"""The method of a layer-wise kind, which with its schema is the kind. Imported by the planner: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runner.contracts import metric_ranges
from runner.contracts.context import Params
from runner.model.layerwise.method import Block, Transform, Transformed

# Goes on with a layer after `transform`; it is also given the params of every module that changes, and a seed.
BlockStep = Callable[[Block, Mapping[str, Transformed], Mapping[str, Params], int], Mapping[str, Transformed]]

LAYER_ERROR = "layer_error"  # the largest mean error of a layer's modules: a gate on it ends the step at that layer
ERRORS = {LAYER_ERROR: metric_ranges.AMOUNT}  # the METRICS of a kind that measures the error of modules


@dataclass(frozen=True)
class LayerMethod:
    """The method of a layer-wise kind, for `bind`.

    statistics   what to collect: "none", "input_norms", "hessian" or "cross" (runner.model.layerwise.method), or a
                 function of the params that gives one
    stacked      rows are independent of each other: linears with one input and equal params are solved as one
    fallback     what is done without statistics to an expert that saw too few tokens
    block        goes on with each layer as a whole, with gradients
    """

    transform: Transform
    statistics: str | Callable[[Params], str] = "none"
    stacked: bool = False
    fallback: Transform | None = None
    block: BlockStep | None = None

    @property
    def kind(self) -> str:
        """The step kind whose module holds `transform`: "quantize.gptq"."""
        return ".".join(self.transform.__module__.split(".")[-2:])

    def wants(self, params: Params) -> str:
        return self.statistics if isinstance(self.statistics, str) else self.statistics(params)

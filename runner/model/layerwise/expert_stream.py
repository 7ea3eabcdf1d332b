"""Running the experts of a layer one after another, each over the tokens of all batches.

A forward of the layer stops at its experts; what it would call them with waits on disk until all batches are there.
Then, for each expert: read its weights ─► its tokens' inputs give the statistics of its first matrices ─► these are
changed ─► what they now give, those of the last one ─► add its outputs to those of the tokens. So one expert and its
statistics are in memory, however many there are, and the forwards go on with outputs of experts already changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from runner.contracts.mixtures import Mixture
from runner.contracts.sites import Site
from runner.model.checkpoint.placed_part import site_weight
from runner.model.checkpoint.quantization.scheme import Numbers
from runner.model.checkpoint.reader import CheckpointReader
from runner.model.layerwise.activation_rounding import round_inputs
from runner.model.layerwise.apply_method import dense, transform_group
from runner.model.layerwise.forward_modes import RUNNING, Span
from runner.model.layerwise.layer_probes import StandIn
from runner.model.layerwise.method import Method, Statistics, Transformed
from runner.model.layerwise.statistics import largest
from runner.model.layerwise.statistics_collector import StatisticsCollector
from runner.model.layerwise.token_file import TokenFile
from runner.system import heap

Emit = Callable[[int, Mapping[str, Transformed]], None]  # the number of an expert, and what became of its matrices
Watch = Callable[[int, torch.Tensor, torch.Tensor], None]  # the number of an expert, outputs, their shares

# Rows of products are multiples of these: libraries keep what they have compiled for every shape that they multiply
# (oneDNN 0.6 MB for one of bf16 with 2048 columns, measured).
_ROWS = 256  # of statistics
_FORWARD_ROWS = 64


def runs_one_by_one(module: nn.Module) -> bool:
    """Whether a module holds experts in the common way of transformers, and says how each is computed."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate")


class ExpertsStandIn(StandIn):
    """Stands in for a module of experts of transformers; gives what was computed for the windows that are running."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__(experts)
        self.given: Callable[[Span], torch.Tensor] | None = None

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        if self.given is None:  # a look at what is called with what
            return torch.zeros_like(hidden_states)
        found = self.given(RUNNING.get())
        return found.to(hidden_states.device, hidden_states.dtype).view_as(hidden_states)


@dataclass(frozen=True)
class ExpertLane:
    """The experts of one version of a layer: the module, and the sites that hold its weights in a checkpoint.

    rounded  the numbers to which servers round what enters their matrices; None: it stays as it is
    """

    stand_in: ExpertsStandIn
    mixture: Mixture
    reader: CheckpointReader
    sites: Mapping[str, Site]
    rounded: Numbers | None = None

    def weights(self, expert: int) -> dict[str, torch.Tensor]:
        """The weights [rows, columns] of an expert by site, as they are stored, the last one down."""
        return {name: site_weight(self.reader, self.sites[name]) for name in self.mixture.sites(expert)}

    def inner(self, expert: int, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """The input [tokens, columns] of the last matrix, for inputs x of the expert."""
        experts: Any = self.stand_in
        biases: Any = getattr(experts, "gate_up_proj_bias" if experts.has_gate else "up_proj_bias", None)
        out = _product(self._entering(x), torch.cat(list(weights)), biases[expert] if experts.has_bias else None)
        gated: torch.Tensor = experts._apply_gate(out) if experts.has_gate else experts.act_fn(out)
        return gated

    def outer(self, expert: int, inner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The output of the expert [tokens, columns]."""
        experts: Any = self.stand_in
        out = _product(self._entering(inner), weight, experts.down_proj_bias[expert] if experts.has_bias else None)
        if experts.has_post_expert_norm:
            out = experts.post_expert_norm(out)
        return out

    def _entering(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.rounded is None else round_inputs(x, self.rounded)


@dataclass
class _Calls:
    """What the experts of one lane were called with: inputs [tokens, columns] on disk, the routing in memory."""

    inputs: TokenFile
    outputs: TokenFile
    experts: list[torch.Tensor]  # int32 [tokens, k] of each batch
    shares: list[torch.Tensor]  # the weight of each of those experts in the output


class MixtureRun:
    """The experts of one mixture over all batches; `ranges` are the tokens of each, by its windows.

    Call `collect` for every batch in order, then `solve` once; the forwards may go on then, and `remove` ends it.
    """

    def __init__(self, lanes: Sequence[ExpertLane], ranges: Mapping[Span, tuple[int, int]], folder: Path) -> None:
        self.lanes, self.folder = lanes, folder
        self.ranges = dict(ranges)
        self.places = list(self.ranges.values())
        self.tokens = max(stop for _, stop in self.places)
        self.calls: list[_Calls] = []
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def collect(self, inputs: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        """Take what the experts of each lane are called with for the next batch."""
        if not self.calls:
            self.device, self.dtype = inputs[0][0].device, inputs[0][0].dtype
            for lane, (hidden, _, _) in enumerate(inputs):
                files = [self.folder / f"experts-{lane}-{what}" for what in ("in", "out")]
                width = hidden.shape[-1]
                self.calls.append(
                    _Calls(
                        TokenFile(files[0], self.tokens, width, self.dtype),
                        TokenFile(files[1], self.tokens, width, torch.float32), [], [],
                    )
                )  # fmt: skip
        for calls, (hidden, experts, shares) in zip(self.calls, inputs, strict=True):
            start, stop = self.places[len(calls.experts)]
            calls.inputs.write(start, hidden.reshape(stop - start, -1))
            calls.experts.append(experts.reshape(stop - start, -1).to("cpu", torch.int32))
            calls.shares.append(shares.reshape(stop - start, -1).cpu())

    def solve(self, method: Method, emit: Emit, outputs: bool = True) -> None:
        """Change every expert that the method has options for, handing it to `emit`, and compute all `outputs`."""
        for expert in range(self.lanes[0].mixture.experts):
            weights = self.lanes[0].weights(expert)
            if any(name in method.options for name in weights):
                done = self._solved(expert, weights, method)
                emit(expert, done)
                weights = {name: _new(done.get(name), weight) for name, weight in weights.items()}
            if outputs:
                self._add_outputs(0, expert, weights)
                if len(self.lanes) > 1:
                    self._add_outputs(1, expert, self.lanes[1].weights(expert))
            heap.trim()  # what this expert left would be in the way of what the next one needs
        self._give()

    def measure(self, watch: Watch) -> None:
        """Compute all outputs of unchanged experts; `watch` gets those of each expert in each batch.

        These are outputs [tokens, columns] of the tokens routed to it, and the weight of each in the layer's [tokens].
        """
        for expert in range(self.lanes[0].mixture.experts):
            self._add_outputs(0, expert, self.lanes[0].weights(expert), watch)
            heap.trim()
        self._give()

    def outputs(self, tokens: int) -> torch.Tensor:
        """The outputs of all experts for as many tokens, evenly spaced, wherever they are routed.

        Float32 [experts, tokens, columns]. The experts are unchanged, and one is in memory at a time.
        """
        rows = [number * self.tokens // tokens for number in range(tokens)]
        x = torch.cat([self.calls[0].inputs.read(row, row + 1) for row in rows]).to(self.device)
        lane = self.lanes[0]
        found: list[torch.Tensor] = []
        for expert in range(lane.mixture.experts):
            used = [self._used(weight) for weight in lane.weights(expert).values()]
            found.append(lane.outer(expert, lane.inner(expert, x, used[:-1]), used[-1]).float().cpu())
        return torch.stack(found)

    def _give(self) -> None:
        """Let the forwards go on with what was computed."""
        for lane, calls in zip(self.lanes, self.calls, strict=True):
            lane.stand_in.given = self._reader(calls.outputs)

    def remove(self) -> None:
        """Forget what the experts gave."""
        for lane in self.lanes:
            lane.stand_in.given = None
        for calls in self.calls:
            calls.inputs.remove()
            calls.outputs.remove()

    def _reader(self, file: TokenFile) -> Callable[[Span], torch.Tensor]:
        return lambda span: file.read(*self.ranges[span])

    def _solved(self, expert: int, weights: dict[str, torch.Tensor], method: Method) -> dict[str, Transformed]:
        """The changed matrices of an expert: first those that see its inputs, then the one that sees what they give."""
        *first, last = weights
        lane = self.lanes[0]
        other = [self._used(w) for w in self.lanes[1].weights(expert).values()] if len(self.lanes) > 1 else []
        present = [self._used(weight) for weight in weights.values()]
        done: dict[str, Transformed] = {}
        for names in (first, [last]):
            collector: StatisticsCollector | None = None
            routed = 0
            for _, rows, x in self._rows(0, expert, method.experts == "all"):
                unchanged = self._inputs(1, rows) if other else None
                if names == [last]:
                    x = lane.inner(expert, x, present[:-1])
                    unchanged = None if unchanged is None else self.lanes[1].inner(expert, unchanged, other[:-1])
                collector = collector or StatisticsCollector(method.statistics, x.shape[-1], x.device)
                more = -len(x) % _ROWS
                collector.add(_padded(x, more), None if unchanged is None else _padded(unchanged, more))
                collector.tokens -= more
            routed = sum(int((experts == expert).sum()) for experts in self.calls[0].experts)
            tokens = 0 if collector is None else collector.tokens
            least = tokens < max(1, method.least_tokens)
            seen = Statistics() if least or collector is None else collector.finish()
            given = {name: weights[name].to(self.device) for name in names}
            changed = transform_group(method, given, seen, lambda name: largest(weights[name]), fallback=least)
            for name, result in changed.items():
                about = {"tokens": routed, "below_floor": int(least)}
                done[name] = result.noting(about)
            if method.sequential:
                for place, name in enumerate(weights):
                    if name in changed:
                        present[place] = self._used(_new(changed[name], weights[name]))
        return done

    def _used(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(self.device, self.dtype)

    def _add_outputs(
        self, lane: int, expert: int, weights: Mapping[str, torch.Tensor], watch: Watch | None = None
    ) -> None:
        calls, run = self.calls[lane], self.lanes[lane]
        used = [self._used(weight) for weight in weights.values()]
        for batch, rows, x in self._rows(lane, expert, False):
            start, stop = self.places[batch]
            out = run.outer(expert, run.inner(expert, x, used[:-1]), used[-1])
            share = (calls.shares[batch] * (calls.experts[batch] == expert)).sum(-1)[rows - start]
            if watch is not None:
                watch(expert, out, share)
            total = calls.outputs.read(start, stop)
            total[rows - start] += (out.cpu() * share.to(out.dtype)[:, None]).float()
            calls.outputs.write(start, total)

    def _rows(self, lane: int, expert: int, all_tokens: bool) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """For every batch that has any: its number, the tokens routed to an expert, or all, and their inputs."""
        for batch, experts in enumerate(self.calls[lane].experts):
            start, stop = self.places[batch]
            if all_tokens:
                rows = torch.arange(start, stop)
            else:
                rows = (experts == expert).any(-1).nonzero().reshape(-1) + start
            if len(rows):
                yield batch, rows, self._inputs(lane, rows)

    def _inputs(self, lane: int, rows: torch.Tensor) -> torch.Tensor:
        first, last = int(rows[0]), int(rows[-1])
        return self.calls[lane].inputs.read(first, last + 1)[rows - first].to(self.device)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias, computed with further rows."""
    return functional.linear(_padded(x, -len(x) % _FORWARD_ROWS), weight, bias)[: len(x)]


def _padded(x: torch.Tensor, more: int) -> torch.Tensor:
    """x with further rows of zeros, which add nothing to any statistic."""
    return torch.cat([x, x.new_zeros(more, x.shape[1])]) if more else x


def _new(result: Transformed | None, weight: torch.Tensor) -> torch.Tensor:
    """The weight that a reader of the written checkpoint will see."""
    return weight if result is None else dense(result, weight.dtype)

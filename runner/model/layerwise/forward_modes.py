"""Running one decoder layer over all calibration batches, stopping at each group of linears that see the same input.

Every batch's forward is a coroutine (a greenlet: the forward itself stays plain transformers code), suspended when it
reaches the first linear of a group; once all batches wait there, the group's statistics are complete, its linears
are replaced, and the forwards go on with the new weights. So the whole layer is computed once, in true sequential
order. Where the suspended intermediates would not fit the memory budget, the forward is run again up to each group
instead: the same operations on the same values, hence the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import nn

from runner.model.layerwise.layer_probes import Call, hidden_states

Span = tuple[int, int]
RUNNING: ContextVar[Span] = ContextVar("RUNNING")  # the windows that a forward of a layer is running


@dataclass(frozen=True)
class Lane:
    """One version of the layer and the hidden states that flow through it. The first lane is the one being changed;

    a second one carries the unchanged model beside it, for methods that compare.
    """

    layer: nn.Module
    read: Callable[[int, int], torch.Tensor]
    write: Callable[[int, torch.Tensor], None]
    call: Callable[[Span], Call]  # the arguments besides hidden states


Collect = Callable[[int, tuple[Any, ...]], None]  # group, its input in each lane: of experts, all arguments
Solve = Callable[[int], None]


@dataclass(frozen=True)
class LayerRun:
    """One layer to run over every batch. `heads[g]` names the first linear of group `g`, where forwards stop.

    The second lane runs the batches `paired` alone (None: all of them).

    `collect` takes each batch's input of a group, then `solve` changes the group. `outputs` are the numbers of the
    lanes whose output is written; forwards of the others end at the last group: the last layer's output is nobody's
    input, and one that will change is computed later.
    """

    lanes: Sequence[Lane]
    spans: Sequence[Span]
    heads: Sequence[str]
    collect: Collect
    solve: Solve
    outputs: frozenset[int] = frozenset((0, 1))
    paired: frozenset[Span] | None = None

    def lanes_of(self, span: Span) -> Sequence[Lane]:
        """Return the lanes that run a batch."""
        return self.lanes if self.paired is None or span in self.paired else self.lanes[:1]


def find_groups(
    layer: nn.Module,
    linears: Sequence[str],
    hidden: torch.Tensor,
    args: Any,
    kwargs: Any,
    alone: Collection[str] = (),
) -> list[list[str]]:
    """Names of the layer's linears in the order of their first call, those that see one tensor together.

    Modules that are `alone` (experts) make a group each. Runs the layer on `hidden`, which may be few tokens: what
    comes out is of no interest, only who is called with what.
    """
    seen: dict[Any, list[str]] = {}
    kept = []  # keeps inputs alive, so that no storage address is reused while it is compared

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = (*args, *kwargs.values())[0]
            kept.append(x)
            place = (x.untyped_storage()._cdata, x.storage_offset(), tuple(x.shape), x.stride(), name in alone and name)
            if not any(name in names for names in seen.values()):
                seen.setdefault(place, []).append(name)

        return hook

    handles = [layer.get_submodule(n).register_forward_pre_hook(watch(n), with_kwargs=True) for n in (*linears, *alone)]
    try:
        layer(hidden, *args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.values())


def run_suspended(run: LayerRun) -> None:
    """Run one forward per batch and lane, suspended at the first linear of each group."""
    hub = getcurrent()
    with Stops(run.lanes, run.heads, lambda group, x: hub.switch((group, x))):
        runs = [[greenlet(forward, hub) for _ in run.lanes_of(span)] for span in run.spans]
        for group in range(len(run.heads)):
            for span, row in zip(run.spans, runs, strict=True):
                inputs = []
                for lane, suspended in zip(run.lanes_of(span), row, strict=True):
                    reached = suspended.switch(lane, span) if group == 0 else suspended.switch()
                    inputs.append(arrived(reached, group, run.heads))
                run.collect(group, tuple(inputs))
                del inputs, reached
            run.solve(group)
        for span, row in zip(run.spans, runs, strict=True):
            for number, (lane, suspended) in enumerate(zip(run.lanes_of(span), row, strict=True)):
                if number in run.outputs:
                    lane.write(span[0], suspended.switch() if run.heads else forward(lane, span))
                else:
                    suspended.throw()
            row.clear()


def run_again(run: LayerRun) -> None:
    """As `run_suspended`, but each group's inputs come from running the layer afresh up to it."""

    def stop(group: int, x: Any) -> None:
        if group == wanted:
            raise Reached(x)

    for group in range(len(run.heads)):
        wanted = group
        with Stops(run.lanes, run.heads, stop):
            for span in run.spans:
                run.collect(group, tuple(reach(lane, span) for lane in run.lanes_of(span)))
        run.solve(group)
    _finish(run)


def run_at_once(run: LayerRun) -> None:
    """Statistics of all groups from the unchanged layer, then all groups solved, then the outputs: two forwards."""
    last = len(run.heads) - 1
    for span in run.spans:
        inputs: list[dict[int, torch.Tensor]] = []
        for lane in run.lanes_of(span):
            found: dict[int, torch.Tensor] = {}

            def keep(group: int, x: torch.Tensor, found: dict[int, torch.Tensor] = found) -> None:
                found[group] = x
                if group == last:
                    raise Reached(x)

            with Stops([lane], run.heads, keep):
                reach(lane, span)
            inputs.append(found)
        for group in range(len(run.heads)):
            run.collect(group, tuple(found[group] for found in inputs))
    for group in range(len(run.heads)):
        run.solve(group)
    _finish(run)


def finish(lane: Lane, spans: Sequence[Span]) -> None:
    """Compute and write the output of a lane."""
    for span in spans:
        lane.write(span[0], forward(lane, span))


def _finish(run: LayerRun) -> None:
    for number, lane in enumerate(run.lanes):
        if number in run.outputs:
            finish(lane, [span for span in run.spans if lane in run.lanes_of(span)])


def forward(lane: Lane, span: Span) -> torch.Tensor:
    """Run a layer on the hidden states of a batch."""
    RUNNING.set(span)
    args, kwargs = lane.call(span)
    return hidden_states(lane.layer(lane.read(*span), *args, **kwargs))


def reach(lane: Lane, span: Span) -> Any:
    try:
        forward(lane, span)
    except Reached as reached:
        return reached.x
    raise RuntimeError("the layer ended before it reached a linear that two tokens reached")


def arrived(reached: Any, group: int, heads: Sequence[str]) -> Any:
    if not (isinstance(reached, tuple) and reached[0] == group):
        raise RuntimeError(f"the layer did not reach `{heads[group]}` in the order in which two tokens did")
    return reached[1]


class Reached(Exception):
    def __init__(self, x: Any) -> None:
        self.x = x


class Stops:
    """Context: `stop(group, input)` is called before the first linear of each group runs."""

    def __init__(self, lanes: Sequence[Lane], heads: Sequence[str], stop: Callable[[int, Any], Any]) -> None:
        self.lanes, self.heads, self.stop = lanes, heads, stop
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for lane in self.lanes:
            for group, name in enumerate(self.heads):
                module = lane.layer.get_submodule(name)
                self.handles.append(module.register_forward_pre_hook(self._hook(group), with_kwargs=True))

    def _hook(self, group: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = (*args, *kwargs.values())
            self.stop(group, inputs[0] if len(inputs) == 1 else inputs)

        return hook

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()

"""The ways to run a layer, on small layers and against a loop that runs the layer in full for every group."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import nn

from runner.model.layerwise import forward_modes
from runner.model.layerwise.forward_modes import Lane, LayerRun, Span, find_groups

WIDTH = 8
SPANS: list[Span] = [(0, 2), (2, 3), (3, 6)]
Run = Callable[[LayerRun], None]


class Block(nn.Module):
    """Two linears that see one tensor, then two in a row; registered in another order than they are called in."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.right, self.left = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> Any:
        x = torch.tanh(x)
        hidden = torch.tanh(self.left(x)) * self.right(x)
        return (x + scale * self.down(torch.relu(self.up(hidden))),)


class Branching(nn.Module):
    """Calls its linears in an order that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> Any:
        chain = (self.first, self.second) if float(x.sum()) > 0 else (self.second, self.first)
        return scale * chain[1](torch.tanh(chain[0](x)))


class Flow:
    """A layer, what flows into it, and what was seen and written: all that a way to run it acts on."""

    def __init__(self, layer: nn.Module, hidden: torch.Tensor, lanes: int = 1) -> None:
        self.hidden, self.layers = hidden, [copy.deepcopy(layer) for _ in range(lanes)]
        self.out = [torch.zeros_like(hidden) for _ in range(lanes)]
        linears = [name for name, _ in layer.named_children()]
        self.groups = find_groups(layer, linears, hidden[:1, :2], (), {"scale": 0.5})
        self.seen: dict[int, list[torch.Tensor]] = {}
        self.solved: list[int] = []

    def lane(self, index: int) -> Lane:
        def write(at: int, x: torch.Tensor) -> None:
            self.out[index][at : at + len(x)] = x

        return Lane(
            self.layers[index], lambda start, stop: self.hidden[start:stop], write, lambda span: ((), {"scale": 0.5})
        )

    def collect(self, group: int, inputs: tuple[torch.Tensor, ...]) -> None:
        self.seen.setdefault(group, []).extend(x.clone() for x in inputs)

    def solve(self, group: int) -> None:
        """Change the group's weights in the first lane by what its inputs were."""
        mean = torch.cat([x.flatten(0, 1) for x in self.seen[group]]).mean(0)
        for name in self.groups[group]:
            self.layers[0].get_submodule(name).get_parameter("weight").add_(mean)
        self.solved.append(group)

    def run(self, how: Run, output: bool = True, paired: frozenset[Span] | None = None) -> None:
        heads = [names[0] for names in self.groups]
        lanes = [self.lane(i) for i in range(len(self.layers))]
        outputs = frozenset(range(len(lanes)) if output else ())
        with torch.inference_mode():
            how(LayerRun(lanes, SPANS, heads, self.collect, self.solve, outputs, paired))

    def bytes(self) -> list[torch.Tensor]:
        """Everything that must agree: inputs of every group, new weights, outputs of every lane."""
        inputs = [x for group in sorted(self.seen) for x in self.seen[group]]
        return [*inputs, *self.layers[0].state_dict().values(), *self.out]


def naive(flow: Flow, sequential: bool = True, paired: Collection[Span] = SPANS) -> None:
    """Run the layer in full once for each group and batch, keeping what the group's first linear was called with.

    Lanes behind the first run the batches `paired` alone.
    """
    unchanged = copy.deepcopy(flow.layers[0])
    with torch.inference_mode():
        for group, names in enumerate(flow.groups):
            for start, stop in SPANS:
                inputs = []
                others = flow.layers[1:] if (start, stop) in paired else []
                for layer in [flow.layers[0] if sequential else unchanged, *others]:
                    handle = layer.get_submodule(names[0]).register_forward_pre_hook(lambda m, x: inputs.append(x[0]))  # noqa: B023
                    layer(flow.hidden[start:stop], scale=0.5)
                    handle.remove()
                flow.collect(group, tuple(inputs))
            flow.solve(group)
        for start, stop in SPANS:
            for lane, (layer, out) in enumerate(zip(flow.layers, flow.out, strict=True)):
                if lane and (start, stop) not in paired:
                    continue
                result = layer(flow.hidden[start:stop], scale=0.5)
                out[start:stop] = result[0] if isinstance(result, tuple) else result


def flow(kind: type[nn.Module] = Block, lanes: int = 1) -> Flow:
    torch.manual_seed(0)
    layer = kind().requires_grad_(False)
    hidden = torch.randn(6, 5, WIDTH)
    hidden[:3] = hidden[:3].abs()  # for Branching: the first three windows go one way, the others the other way
    hidden[3:] = -hidden[3:].abs()
    return Flow(layer, hidden, lanes)


def same(found: Flow, expected: Flow) -> None:
    assert found.solved == expected.solved
    for mine, theirs in zip(found.bytes(), expected.bytes(), strict=True):
        assert torch.equal(mine, theirs)


def test_groups_come_in_the_order_of_calls() -> None:
    assert flow().groups == [["left", "right"], ["up"], ["down"]]


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("how", [forward_modes.run_suspended, forward_modes.run_again])
def test_each_group_sees_the_groups_before_it_changed(how: Run, lanes: int) -> None:
    found, expected = flow(lanes=lanes), flow(lanes=lanes)
    found.run(how)
    naive(expected)
    same(found, expected)


@pytest.mark.parametrize("how", [forward_modes.run_suspended, forward_modes.run_again, forward_modes.run_at_once])
def test_the_second_lane_runs_some_batches_alone(how: Run) -> None:
    some = frozenset([SPANS[0], SPANS[2]])
    found, expected = flow(lanes=2), flow(lanes=2)
    found.run(how, paired=some)
    naive(expected, sequential=how is not forward_modes.run_at_once, paired=some)
    same(found, expected)
    assert not found.out[1][2:3].any()


@pytest.mark.parametrize("lanes", [1, 2])
def test_at_once_every_group_sees_the_unchanged_layer(lanes: int) -> None:
    found, expected = flow(lanes=lanes), flow(lanes=lanes)
    found.run(forward_modes.run_at_once)
    naive(expected, sequential=False)
    same(found, expected)


@pytest.mark.parametrize("how", [forward_modes.run_suspended, forward_modes.run_again, forward_modes.run_at_once])
def test_nothing_is_left_on_the_layer(how: Run) -> None:
    """No hook stays, and without `outputs` nothing is written."""
    found, whole = flow(), flow()
    found.run(how, output=False)
    whole.run(how)
    assert not found.out[0].any()
    assert [len(module._forward_pre_hooks) for module in found.layers[0].modules()] == [0] * 5
    for mine, theirs in zip(found.layers[0].parameters(), whole.layers[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_order_that_depends_on_the_data_is_run_again() -> None:
    found, expected = flow(Branching), flow(Branching)
    found.run(forward_modes.run_again)
    naive(expected)
    same(found, expected)


def test_an_order_that_depends_on_the_data_cannot_be_suspended() -> None:
    with pytest.raises(RuntimeError, match=r"^the layer did not reach `first` in the order in which two tokens did$"):
        flow(Branching).run(forward_modes.run_suspended)


class Skipping(Branching):
    """Leaves its second linear out for some data."""

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> Any:
        hidden = self.first(x)
        return self.second(hidden) if float(x.sum()) > 0 else hidden


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (forward_modes.run_suspended, "the layer did not reach `second` in the order in which two tokens did"),
        (forward_modes.run_again, "the layer ended before it reached a linear that two tokens reached"),
        (forward_modes.run_at_once, "the layer ended before it reached a linear that two tokens reached"),
    ],
)
def test_a_linear_that_some_data_do_not_reach_is_an_error(how: Run, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        flow(Skipping).run(how)

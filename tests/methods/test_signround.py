"""SignRound: positions, scales and their steps against plain formulas; learning on a block whose loss is a square."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from runner.methods import signround
from runner.methods.quantization_grid import grid_of, in_steps, make_grid, quantize_rtn, round_to_grid
from runner.methods.signround import Rounding, Schedule
from runner.model.checkpoint.quantization.elements import Levels
from runner.model.checkpoint.quantization.scheme import Numbers

ROWS, COLUMNS = 24, 40
NUMBERS = {
    "symmetric": Numbers("int4", 8),
    "asymmetric": Numbers("int3", 8, symmetric=False),
    "short last group": Numbers("int4", 16),
    "channel": Numbers("int8", "channel"),
    "tensor": Numbers("int4", "tensor"),
    "e4m3": Numbers("float8_e4m3", "channel"),
    "e2m1": Numbers("float4_e2m1", 8),
    "blocks": Numbers("float8_e4m3", (16, 16)),
}


def weight(seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(ROWS, COLUMNS)


def rounding(numbers: Numbers, w: torch.Tensor) -> Rounding:
    grid = make_grid(w, Levels(numbers), "minmax")
    return Rounding(in_steps(w, grid), grid)


@pytest.mark.parametrize("name", NUMBERS)
def test_without_steps_it_is_rounding_to_nearest(name: str) -> None:
    numbers, w = NUMBERS[name], weight()
    expected = quantize_rtn(w, Levels(numbers))
    found = rounding(numbers, w).quantized()
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)
    assert (found.zero_point is None) == (expected.zero_point is None)
    assert grid_of(found).scale.dtype is torch.float32


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_written_is_what_readers_see(name: str) -> None:
    own = rounding(NUMBERS[name], weight())
    torch.manual_seed(1)
    for _ in range(3):
        own.step(torch.randn(ROWS, COLUMNS), 0.3, 0.02)
    written = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16)
    own.write(written)
    assert torch.equal(written, own.quantized().dequantize(torch.bfloat16))


@pytest.mark.parametrize("chunk", [1 << 18, COLUMNS * 5])
def test_a_step_follows_the_formulas(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of (2) and of the signs of (1), in float64; the second one has the moments of both gradients."""
    monkeypatch.setattr(signround, "CHUNK", chunk)
    w = weight()
    own = rounding(Numbers("int4", 8), w)
    u, s0 = own.positions.double().clone(), own.scale.double().clone()
    s = s0.clone()
    gradients = [torch.randn(ROWS, COLUMNS).double() * torch.linspace(0.1, 3, COLUMNS) for _ in range(2)]
    for count in (1, 2):
        g = gradients[count - 1]
        own.step(g.float(), 0.25, 0.01)
        q = u.round().clamp(-8, 7)
        s -= 0.01 * s0 * torch.sign((g * q).unflatten(1, (-1, 8)).sum(-1))
        squares = torch.stack([each.square() for each in gradients[:count]])
        rows, columns = squares.mean((0, 2)).sqrt(), squares.mean((0, 1))
        columns = columns / columns.mean()
        scaled = g / rows[:, None] / columns / (1 / columns).mean().sqrt()
        u -= 0.25 * scaled.clamp(-3, 3)
        torch.testing.assert_close(own.positions.double(), u, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own.scale.double(), s, rtol=1e-5, atol=1e-7)


def test_moves_of_floats_are_counted_in_their_spacing() -> None:
    levels = Levels(Numbers("float4_e2m1", 8))
    positions = torch.tensor([0.2, -0.9, 1.9, 2.1, -3.5, 4.5, 7.0])
    assert signround.spacing(positions, levels).tolist() == [0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0]
    eight = Levels(Numbers("float8_e4m3", "channel"))
    values = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (values[1:] + values[:-1]) / 2
    assert torch.equal(signround.spacing(middles, eight), values.diff())


def test_weights_that_are_zero_stay_zero() -> None:
    w = weight()
    w[:, ::3] = 0
    own = rounding(Numbers("int4", 8), w)
    for _ in range(4):
        own.step(torch.randn(ROWS, COLUMNS), 2.0, 0.0)
    assert not own.quantized().dequantize(torch.float32)[:, ::3].any()


@pytest.mark.parametrize("steps", [1, 2, 17])
def test_the_shares_of_all_steps_fall_and_sum_to_one(steps: int) -> None:
    shares = [Schedule(steps, 1, 1).rate(step) for step in range(steps)]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0


class Quadratic:
    """A block of one linear: ‖X (W̃ − W)ᵀ‖² for batches of correlated inputs X."""

    def __init__(self, w: torch.Tensor) -> None:
        torch.manual_seed(2)
        self.inputs = torch.randn(6, 200, 10) @ torch.randn(10, COLUMNS) + 0.1 * torch.randn(6, 200, COLUMNS)
        self.dense, self.weight = w, w.clone()
        self.index, self.seen = 0, list[int]()

    @property
    def batches(self) -> int:
        return len(self.inputs)

    def parameter(self, name: str) -> torch.Tensor:
        return self.weight

    def round_inputs(self, name: str, numbers: Numbers, scale: torch.Tensor | None = None) -> None:
        raise AssertionError

    def loss(self, batches: Sequence[int]) -> float:
        x = self.inputs[list(batches)].flatten(0, 1)
        return float((x @ (self.weight - self.dense).T).square().sum() / (x @ self.dense.T).square().sum())

    def gradients(self, batches: Sequence[int]) -> Mapping[str, torch.Tensor]:
        self.seen += batches
        x = self.inputs[list(batches)].flatten(0, 1)
        return {"w": 2 * (self.weight - self.dense) @ x.T @ x}


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "channel", "e4m3", "e2m1", "tensor", "blocks"])
def test_learning_lowers_the_error_of_the_output(name: str) -> None:
    w = weight()
    grid = make_grid(w, Levels(NUMBERS[name]), "minmax")
    block = Quadratic(w)
    start = round_to_grid(w, grid)
    block.weight.copy_(start.dequantize(torch.float32))
    own = Rounding(in_steps(w, grid), grid)
    learned = signround.learn(block, {"w": own}, Schedule(60, 0.6, 0.03), seed=0)
    assert learned.better
    assert learned.after < 0.7 * learned.before
    assert learned.after == pytest.approx(block.loss([0, 1, 3, 4]))
    assert torch.equal(block.weight.bfloat16(), own.quantized().dequantize(torch.bfloat16))


def test_every_batch_comes_once_before_any_comes_again() -> None:
    block = Quadratic(weight())
    own = rounding(Numbers("int4", 8), weight())
    signround.learn(block, {"w": own}, Schedule(12, 0.1, 0), seed=3)
    assert sorted(block.seen[:6]) == sorted(block.seen[6:]) == list(range(6))
    assert block.seen[:6] != block.seen[6:]


def test_no_steps_leave_the_start() -> None:
    block = Quadratic(weight())
    own = rounding(Numbers("int4", 8), weight())
    learned = signround.learn(block, {"w": own}, Schedule(0, 0.5, 0.02), seed=0)
    assert (learned.before, learned.better) == (learned.after, False)

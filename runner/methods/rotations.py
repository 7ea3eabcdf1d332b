"""Orthogonal matrices that mix channels: Hadamard matrices of Sylvester and Paley, and random ones.

A rotation Q [n, n] is kept as a product of simple ones, so that x Q of a Hadamard matrix of order a · b costs a + b
operations a value instead of a · b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from runner.methods.hadamard_orders import base_order, hadamard_order, paley_prime

_DENSE = 64  # order up to which a Hadamard matrix is multiplied with as it is


@dataclass(frozen=True)
class Rotation:
    """Q = S₁ S₂ … of order `size`; each factor is a vector, a permutation, or a pair of matrices.

    vector [n]               diag(v)
    permutation int64 [n]    x Q = x[..., p]
    pair (A [a, a], B [b, b])   A ⊗ B with a · b = n; A is None for the identity
    """

    size: int
    factors: tuple[torch.Tensor | tuple[torch.Tensor | None, torch.Tensor], ...]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return x Q of x [..., n], in the type of x."""
        for factor in self.factors:
            if isinstance(factor, torch.Tensor):
                factor = factor.to(x.device)
                x = x * factor.to(x.dtype) if factor.is_floating_point() else x[..., factor]
                continue
            a, b = factor
            split = x.unflatten(-1, (-1, b.shape[0])) @ b.to(x)
            if a is not None:
                split = torch.einsum("...ib,ij->...jb", split, a.to(x))
            x = split.flatten(-2)
        return x

    def matrix(self) -> torch.Tensor:
        """Return Q itself, float64."""
        return self.apply(torch.eye(self.size, dtype=torch.float64))


def hadamard(n: int) -> torch.Tensor:
    """Return a Hadamard matrix [n, n] of ±1, float64, whose first row and column are ones.

    Sylvester's doublings of 1 or of a matrix by Paley: of order q + 1 for primes q = 3 mod 4, or 2 (q + 1) for primes
    q = 1 mod 4. Raises ValueError for an order that these do not reach.
    """
    base = base_order(n)
    if base is None:
        raise ValueError(f"no Hadamard matrix of order {n} by Sylvester's and Paley's constructions")
    found = torch.ones(1, 1, dtype=torch.float64) if base == 1 else _paley(base)
    two = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    while len(found) < n:
        found = torch.kron(two, found)
    found = found * found[:, :1]
    return found * found[:1]


def _paley(n: int) -> torch.Tensor:
    q = paley_prime(n)
    if q is None:
        raise ValueError(f"no Paley matrix of order {n}")
    squares = {x * x % q for x in range(1, q)}
    character = torch.tensor([0, *(1 if x in squares else -1 for x in range(1, q))], dtype=torch.float64)
    places = torch.arange(q)
    jacobsthal = character[(places[:, None] - places[None, :]) % q]
    border = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    border[0, 1:] = 1
    border[1:, 1:] = jacobsthal
    if n == q + 1:  # Paley I: I + S with S skew
        border[1:, 0] = -1
        return border + torch.eye(n, dtype=torch.float64)
    border[1:, 0] = 1  # Paley II: S symmetric
    one = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    zero = torch.tensor([[1, -1], [-1, -1]], dtype=torch.float64)
    return torch.kron(border, one) + torch.kron(torch.eye(q + 1, dtype=torch.float64), zero)


def rotation(n: int, block: int, kind: str, seed: int, *, keeps_mean: bool = False) -> Rotation:
    """Return a random rotation of n channels, in blocks of `block` (n for one block).

    kind         "hadamard": a Hadamard matrix with random signs; "orthogonal": a random matrix (Haar)
    keeps_mean   the vector of ones stays, in every block, so that the mean of channels, which LayerNorm subtracts,
                 stays what it is: Q = Hᵀ P H with a signed permutation P that keeps the first channel
    """
    generator = torch.Generator().manual_seed(seed)
    if n % block:
        raise ValueError(f"blocks of {block} do not divide {n} channels")
    if kind == "orthogonal":
        return Rotation(n, ((None, _orthogonal(block, generator, keeps_mean)),))
    signs = (torch.randint(0, 2, (n,), generator=generator) * 2 - 1).double()
    transform = _factor(n, block)
    if not keeps_mean:
        return Rotation(n, (signs, transform))
    first = torch.arange(0, n, block)
    signs[first] = 1
    places = torch.arange(n).view(-1, block)
    for row in places:
        row[1:] = row[1:][torch.randperm(block - 1, generator=generator)]
    left, right = transform
    back = None if left is None else left.T.contiguous(), right.T.contiguous()
    return Rotation(n, (back, places.flatten(), signs, transform))


def _factor(n: int, block: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return a normalized Hadamard matrix of each block; of a single large one as a product A ⊗ B of small ones."""
    doublings = 0
    if block == n > _DENSE:
        while 4**doublings < n and n % (2 << doublings) == 0 and hadamard_order(n >> (doublings + 1)):
            doublings += 1
    left, right = 1 << doublings, block >> doublings
    small = hadamard(right) / math.sqrt(right)
    return (None if left == 1 else hadamard(left) / math.sqrt(left)), small


def _orthogonal(n: int, generator: torch.Generator, keeps_mean: bool) -> torch.Tensor:
    size = n - 1 if keeps_mean else n
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    random: torch.Tensor = q * r.diagonal().sign()
    if not keeps_mean:
        return random
    # A basis whose first vector is that of ones: a Householder reflection of the first axis.
    axis = torch.full((n,), 1 / math.sqrt(n), dtype=torch.float64)
    axis[0] -= 1
    basis = torch.eye(n, dtype=torch.float64) - 2 * torch.outer(axis, axis) / axis.dot(axis)
    inner = torch.block_diag(torch.ones(1, 1, dtype=torch.float64), random)
    turned: torch.Tensor = basis @ inner @ basis.T
    return turned

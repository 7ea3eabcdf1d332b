"""Which orders have a Hadamard matrix by Sylvester's and Paley's constructions. Imports no torch."""

from __future__ import annotations

import math


def hadamard_order(n: int) -> bool:
    """Whether a matrix of order n can be made: 2^k times 1 or an order of Paley's constructions."""
    return base_order(n) is not None


def base_order(n: int) -> int | None:
    """Return the order that is doubled until it is n: 1, or that of a matrix by Paley; None where there is none."""
    while n > 0:
        if n == 1 or paley_prime(n) is not None:
            return n
        if n % 2:
            return None
        n //= 2
    return None


def paley_prime(n: int) -> int | None:
    """Return the prime q of Paley's matrix of order n: q + 1 with q = 3 mod 4, or 2 (q + 1) with q = 1 mod 4."""
    if n % 4 == 0 and _prime(n - 1):  # n − 1 = 3 mod 4
        return n - 1
    q = n // 2 - 1
    return q if n % 4 == 0 and q % 4 == 1 and _prime(q) else None


def _prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))

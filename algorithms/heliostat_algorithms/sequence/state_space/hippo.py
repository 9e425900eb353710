"""Where the states of S4 begin: HiPPO-LegS and its relatives, diagonalised once in float64.

HiPPO (2008.07669) is a matrix with which a linear system remembers its past as coefficients of Legendre polynomials. It
is normal but for a term of rank 1 (S4, 2111.00396, theorem 1), A + P P^T = -I/2 + a skew matrix, and so unitarily
diagonal plus low-rank. The skew matrix is real: its eigenvalues come in conjugate pairs, of which one of each is kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Start(NamedTuple):
    """A system in the basis of its eigenvectors, A = diag(eigenvalues) - P P^*: one of each conjugate pair."""

    eigenvalues: Tensor
    """(N / 2,) complex128, with positive imaginary parts."""
    P: Tensor
    """(N / 2,) complex128."""
    B: Tensor
    """(N / 2,) complex128."""


def legs(states: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS: A (N, N) and B (N,) in float64 (S4, equation 2)."""
    root = torch.sqrt(2 * torch.arange(states, dtype=torch.float64) + 1)
    below = torch.tril(root[:, None] * root, diagonal=-1)
    return -below - torch.diag(torch.arange(1, states + 1, dtype=torch.float64)), root


def diagonal_plus_low_rank(states: int) -> Start:
    """HiPPO-LegS in the eigenbasis of its normal part (S4, appendix C.1).

    Raises:
        ValueError: the states do not come in pairs.
    """
    _check(states)
    A, B = legs(states)
    P = torch.sqrt(torch.arange(states, dtype=torch.float64) + 0.5)
    normal = A + P[:, None] * P
    # The skew part S has the eigenvalues of the Hermitian -iS, times i: sorted, exactly imaginary, orthogonal vectors.
    skew = normal - torch.diag(normal.diagonal())
    frequencies, V = torch.linalg.eigh(-1j * skew)
    upper = slice(states // 2, None)
    eigenvalues = torch.complex(normal.diagonal()[: states // 2], frequencies[upper])
    into = V[:, upper].conj().T
    return Start(eigenvalues, into @ P.to(into.dtype), into @ B.to(into.dtype))


def linear(states: int) -> Start:
    """S4D-Lin (2206.11893, equation 9): eigenvalues -1/2 + i pi n, without a low-rank term; B is 1.

    Raises:
        ValueError: the states do not come in pairs.
    """
    _check(states)
    n = torch.arange(states // 2, dtype=torch.float64)
    eigenvalues = torch.complex(torch.full_like(n, -0.5), math.pi * n)
    return Start(eigenvalues, torch.zeros_like(eigenvalues), torch.ones_like(eigenvalues))


def _check(states: int) -> None:
    if states < 2 or states % 2:
        raise ValueError(f"states come in conjugate pairs; their number must be even and at least 2, not {states}")

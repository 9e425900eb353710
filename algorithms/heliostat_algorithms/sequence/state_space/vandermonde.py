"""Sums over powers of complex numbers, for lengths of thousands, as products of two small real matrices.

The kernel of a diagonal system is a product with a Vandermonde matrix, 2 Re(sum over n of v_n exp(x_n l)). With
l = i S + j and S about the root of L, exp(x l) = exp(x i S) exp(x j): 2 sqrt(L) exponentials for each n in place of L,
and what is left is a product of matrices, whose real part is one real product of stacked real and imaginary parts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def weighted_powers(v: Tensor, x: Tensor, length: int) -> Tensor:
    """2 Re(sum over n of v_n exp(x_n l)) for l from 0 to L - 1.

    Args:
        v: (..., H, N) complex.
        x: (H, N) complex.
        length: L.

    Returns:
        (..., H, L), real.
    """
    inner, outer = _split(length)
    coarse = v.unsqueeze(-2) * _powers(x * inner, outer)
    fine = _powers(x, inner)
    rows = torch.cat([2 * coarse.real, -2 * coarse.imag], dim=-1)
    columns = torch.cat([fine.real, fine.imag], dim=-1)
    return (rows @ columns.transpose(-1, -2)).flatten(-2)[..., :length]


def powers_dot(u: Tensor, x: Tensor) -> Tensor:
    """sum over l of u_l exp(x_n l): u (B, H, L) real, x (H, N) complex -> (B, H, N) complex."""
    length = u.shape[2]
    inner, outer = _split(length)
    u = torch.nn.functional.pad(u, (0, inner * outer - length)).reshape(*u.shape[:2], outer, inner)
    fine = _powers(x, inner)
    within = u @ torch.cat([fine.real, fine.imag], dim=-1)  # (B, H, outer, 2 N)
    real, imaginary = within.chunk(2, dim=-1)
    return (torch.complex(real, imaginary) * _powers(x * inner, outer)).sum(dim=2)


def _powers(x: Tensor, count: int) -> Tensor:
    """(H, N) -> (H, count, N): exp(x l) for l from 0 on. By real functions, a fraction of the time of complex ones."""
    place = torch.arange(count, dtype=x.real.dtype, device=x.device)[:, None]
    size, angle = torch.exp(x.real.unsqueeze(1) * place), x.imag.unsqueeze(1) * place
    return torch.complex(size * angle.cos(), size * angle.sin())


def _split(length: int) -> tuple[int, int]:
    """S and the number of stretches of S that cover the length."""
    inner = max(1, math.isqrt(max(length - 1, 0)) + 1)
    return inner, -(-length // inner)

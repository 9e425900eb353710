"""S4's kernel: A = diag(lambda) - P P^*, discretised by the bilinear rule, at all frequencies at once.

The kernel C A^l B of length L is read from its generating function at the L-th roots of unity (2111.00396, section 3.2
and appendix C.3). With C~ = C (I - A^L) and g(z) = (2 / step) (1 - z) / (1 + z) it is, by Woodbury's identity,

    K(z) = 2 / (1 + z) (k00 - k01 k10 / (1 + k11)),     k = sum over states of v / (g - lambda),

for v = C~ B, C~ P, P^* B and P^* P: Cauchy kernels. Three things make them cheap and exact in float32.

*Pairs.* A pair of conjugates adds up to 2 (g Re v - Re(v conj(lambda))) / (g^2 - 2 g Re(lambda) + |lambda|^2): the
denominators are shared by the four sums, and the numerators are real, so that all four are one real matrix product.

*Half a circle.* At z = e^(-i theta), g = (2 / step) i tan(theta / 2) is imaginary. A real kernel has conjugate values
at conjugate z; only theta up to pi is computed.

*No infinity.* With s, c the sine and cosine of theta / 2 and w = 2 s / step, g = i w / c; multiplied by c throughout,
nothing is divided by 0 at z = -1, where K = step / 2 times the sum of C~ B over all states.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heliostat_algorithms.sequence.state_space.systems import DenseSystem


def kernel(eigenvalues: Tensor, P: Tensor, B: Tensor, C: Tensor, step: Tensor, length: int) -> Tensor:
    """The convolution kernel of H systems.

    Args:
        eigenvalues, P, B: (H, N / 2) complex, one of each conjugate pair.
        C: (H, N / 2) complex, the truncated C~ for this length; see ``truncate``.
        step: (H,), above 0.
        length: L.

    Returns:
        (H, L).
    """
    half_angle = torch.arange(length // 2 + 1, dtype=torch.float64, device=step.device) * (math.pi / length)
    s, c = half_angle.sin().to(step.dtype), half_angle.cos().to(step.dtype)
    w = 2 * s / step.unsqueeze(1)  # (H, F)
    v = torch.stack([C * B, C * P, P.conj() * B, P.conj() * P], dim=1)  # (H, 4, N / 2)
    numerators = torch.cat([v.real, (v * eigenvalues.conj().unsqueeze(1)).real], dim=1)  # (H, 8, N / 2)
    # 1 / (c^2 (g^2 - 2 g Re(lambda) + |lambda|^2)) = 1 / (x + i y), for each state and frequency.
    size = eigenvalues.real.square() + eigenvalues.imag.square()
    x = size.unsqueeze(2) * c.square() - w.square().unsqueeze(1)
    y = eigenvalues.real.unsqueeze(2) * (-2 * c * w).unsqueeze(1)
    scale = torch.reciprocal(x.square() + y.square())
    real, imaginary = numerators @ (x * scale), numerators @ (y * scale).neg()  # (H, 8, F)
    w = w.unsqueeze(1)
    k = torch.complex(
        -2 * (w * imaginary[:, :4] + c * real[:, 4:]), 2 * (w * real[:, :4] - c * imaginary[:, 4:])
    )  # (H, 4, F): each of the four sums over c
    k00, k01, k10, k11 = k.unbind(1)
    spectrum = torch.polar(torch.ones_like(c), half_angle.to(c.dtype)) * (k00 - c * k01 * k10 / (1 + c * k11))
    k_in_time: Tensor = torch.fft.irfft(spectrum, n=length)
    return k_in_time


def discretize(eigenvalues: Tensor, P: Tensor, B: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The bilinear rule (equation 3): A_ = (I - step/2 A)^-1 (I + step/2 A), B_ = (I - step/2 A)^-1 step B, as real
    matrices (H, N, N) and vectors (H, N) for states [Re h, Im h] of one of each pair.

    P^* h runs over both of a pair, and so is 2 Re over one: the matrix is linear over real numbers only.
    """
    low = torch.cat([P.real, P.imag], dim=1)
    real, imaginary = torch.diag_embed(eigenvalues.real), torch.diag_embed(eigenvalues.imag)
    A = torch.cat([torch.cat([real, -imaginary], dim=2), torch.cat([imaginary, real], dim=2)], dim=1)
    A = A - 2 * low.unsqueeze(2) * low.unsqueeze(1)
    identity = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
    half = step[:, None, None] / 2
    right = torch.cat([identity + half * A, (2 * half * torch.cat([B.real, B.imag], dim=1).unsqueeze(2))], dim=2)
    solved = torch.linalg.solve(identity - half * A, right)
    return solved[:, :, :-1], solved[:, :, -1]


def truncate(A: Tensor, C: Tensor, length: int) -> Tensor:
    """C~ = C (I - A_^L) of real systems (H, N, N), as complex (H, N / 2): what ``kernel`` takes of C (H, N / 2)."""
    row = _row(C)
    return _of_row(row - (row.unsqueeze(1) @ torch.linalg.matrix_power(A, length)).squeeze(1))


def lengthen(A: Tensor, C: Tensor, length: int) -> Tensor:
    """From C~ for a length to C~ for twice that length: C (I - A_^2L) = C~ (I + A_^L)."""
    row = _row(C)
    return _of_row(row + (row.unsqueeze(1) @ torch.linalg.matrix_power(A, length)).squeeze(1))


def system(A: Tensor, B: Tensor, C: Tensor, length: int) -> DenseSystem:
    """The recurrence whose kernel of this length has the truncated C~ = ``C``: C = C~ (I - A_^L)^-1."""
    identity = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
    loss = identity - torch.linalg.matrix_power(A, length)
    whole = torch.linalg.solve(loss, _row(C).unsqueeze(1), left=False).squeeze(1)
    return DenseSystem(A, B, whole)


def _row(C: Tensor) -> Tensor:
    """y = 2 Re(C h) as a real row (H, N) on [Re h, Im h]."""
    return torch.cat([2 * C.real, -2 * C.imag], dim=1)


def _of_row(row: Tensor) -> Tensor:
    """The complex C (H, N / 2) of a real row."""
    real, imaginary = row.chunk(2, dim=1)
    return torch.complex(real / 2, -imaginary / 2)

"""Discrete linear systems, h_t = A h_{t-1} + B u_t and y_t = 2 Re(C h_t), of H features with states of their own.

A system is what remains of a state-space layer once its step is fixed. It goes on from a state: one time after another
(``step``), or many at once (``response``, ``last``). Together with a convolution by its kernel (``convolution``) that
is the same computation, split as one likes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat_algorithms.sequence.state_space.vandermonde import powers_dot, weighted_powers


class System(ABC):
    """H systems of one input and one output each; their states are real numbers (B, H, N)."""

    @abstractmethod
    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One time: u (B, H), the state (B, H, N) -> y (B, H) and the next state."""

    @abstractmethod
    def response(self, state: Tensor, length: int) -> Tensor:
        """(B, H, N) -> (B, H, L): the next outputs if nothing more comes in."""

    @abstractmethod
    def last(self, u: Tensor, state: Tensor) -> Tensor:
        """u (B, H, L), the state (B, H, N) -> the state after these inputs."""


@dataclass(frozen=True)
class DiagonalSystem(System):
    """A is diagonal. A state is N / 2 complex numbers, held as their real, then their imaginary parts.

    Powers of A are exponentials of multiples of its logarithm.
    """

    log_a: Tensor
    """(H, N / 2) complex."""
    B: Tensor
    """(H, N / 2) complex."""
    C: Tensor
    """(H, N / 2) complex."""

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = self.log_a.exp() * _complex(state) + self.B * u.unsqueeze(2)
        return 2 * (self.C * h).real.sum(dim=2), _real(h)

    def response(self, state: Tensor, length: int) -> Tensor:
        return weighted_powers(self.C * self.log_a.exp() * _complex(state), self.log_a, length)

    def last(self, u: Tensor, state: Tensor) -> Tensor:
        entered = self.B * powers_dot(u.flip(2), self.log_a)
        return _real((self.log_a * u.shape[2]).exp() * _complex(state) + entered)


@dataclass(frozen=True)
class DenseSystem(System):
    """A is any real matrix; the factor 2 and the real part are in C."""

    A: Tensor
    """(H, N, N)."""
    B: Tensor
    """(H, N)."""
    C: Tensor
    """(H, N)."""

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.einsum("hmn,bhn->bhm", self.A, state) + self.B * u.unsqueeze(2)
        return (self.C * h).sum(dim=2), h

    def response(self, state: Tensor, length: int) -> Tensor:
        rows, power = (self.C.unsqueeze(1) @ self.A), self.A  # C A, then twice as many rows C A^l in each turn
        while rows.shape[1] < length:
            rows = torch.cat([rows, rows @ power], dim=1)
            power = power @ power
        return torch.einsum("hln,bhn->bhl", rows[:, :length], state)

    def last(self, u: Tensor, state: Tensor) -> Tensor:
        length = u.shape[2]
        columns, power = self.B.unsqueeze(2), self.A  # B, then twice as many columns A^l B in each turn
        while columns.shape[2] < length:
            columns = torch.cat([columns, power @ columns], dim=2)
            power = power @ power
        entered = torch.einsum("hnl,bhl->bhn", columns[:, :, :length], u.flip(2))
        return torch.einsum("hmn,bhn->bhm", torch.linalg.matrix_power(self.A, length), state) + entered


def _complex(state: Tensor) -> Tensor:
    """(..., N) -> (..., N / 2)."""
    real, imaginary = state.chunk(2, dim=-1)
    return torch.complex(real, imaginary)


def _real(h: Tensor) -> Tensor:
    """(..., N / 2) -> (..., N)."""
    return torch.cat([h.real, h.imag], dim=-1)

"""S4's start, discretisation and kernels, against matrices written from the formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.sequence.s4 import (
    SLOWEST_DECAY,
    DiagonalPlusLowRankStateSpace,
    DiagonalStateSpace,
    Discretization,
)
from heliostat_algorithms.sequence.state_space import diagonal_plus_low_rank as dplr
from heliostat_algorithms.sequence.state_space import hippo
from heliostat_algorithms.sequence.state_space.vandermonde import powers_dot, weighted_powers

STATES = 8


def full(space: DiagonalPlusLowRankStateSpace | DiagonalStateSpace, feature: int) -> tuple[Tensor, Tensor]:
    """A and B of one feature with both of each pair, complex128."""
    values = space.eigenvalues().detach()[feature].to(torch.complex128)
    B = torch.view_as_complex(space.B.detach())[feature].to(torch.complex128)
    A = torch.diag(torch.cat([values, values.conj()]))
    if isinstance(space, DiagonalPlusLowRankStateSpace):
        P = torch.view_as_complex(space.P.detach())[feature].to(torch.complex128)
        P = torch.cat([P, P.conj()])
        A = A - P[:, None] * P.conj()
    return A, torch.cat([B, B.conj()])


def series(A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """C A^l B for l from 0 on."""
    return torch.stack([(C @ torch.linalg.matrix_power(A, lag) @ B).real for lag in range(length)])


def test_legs_is_the_formula() -> None:
    A, B = hippo.legs(5)
    for n in range(5):
        assert B[n].item() == pytest.approx(math.sqrt(2 * n + 1))
        for k in range(5):
            expected = -math.sqrt((2 * n + 1) * (2 * k + 1)) if n > k else -(n + 1.0) if n == k else 0.0
            assert A[n, k].item() == pytest.approx(expected)


@pytest.mark.parametrize("states", [2, 8, 64])
def test_the_eigenbasis_holds_the_same_system(states: int) -> None:
    """Equal transfer functions C (s - A)^-1 B with C = B^*, at points off the axis, say that A, B are the same up to a
    unitary change of basis."""
    A, B = hippo.legs(states)
    start = hippo.diagonal_plus_low_rank(states)
    assert torch.allclose(start.eigenvalues.real, torch.tensor(-0.5, dtype=torch.float64))
    assert (start.eigenvalues.imag > 0).all()
    values, P, entry = (torch.cat([x, x.conj()]) for x in start)
    diagonal = torch.diag(values) - P[:, None] * P.conj()
    for s in (1.0 + 2.0j, 0.3 - 5.0j, 20.0 + 1.0j):
        identity = torch.eye(states, dtype=torch.complex128)
        before = B.to(identity.dtype) @ torch.linalg.solve(s * identity - A, B.to(identity.dtype))
        after = entry.conj() @ torch.linalg.solve(s * identity - diagonal, entry)
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_odd_numbers_of_states_are_refused() -> None:
    for start in (hippo.linear, hippo.diagonal_plus_low_rank):
        with pytest.raises(ValueError, match="pairs"):
            start(5)


@pytest.mark.parametrize("length", [1, 2, 33, 64])
@pytest.mark.parametrize("double", [True, False])
def test_the_dplr_kernel_is_the_power_series(length: int, double: bool) -> None:
    torch.manual_seed(length)
    space = DiagonalPlusLowRankStateSpace(hippo.diagonal_plus_low_rank(STATES), 3, (0.01, 0.2), length)
    if double:
        space.double()
    ours = space.kernel(length).detach().double()
    step = space.step().detach().double()
    stored = torch.view_as_complex(space.C.detach().double())
    for h in range(3):
        A, B = full(space, h)
        identity = torch.eye(STATES, dtype=A.dtype)
        behind = identity - step[h] / 2 * A
        A_ = torch.linalg.solve(behind, identity + step[h] / 2 * A)
        B_ = torch.linalg.solve(behind, step[h] * B)
        truncated = torch.cat([stored[h], stored[h].conj()])
        C = truncated @ torch.linalg.inv(identity - torch.linalg.matrix_power(A_, length))
        expected = series(A_, B_, C, length)
        torch.testing.assert_close(ours[h], expected, rtol=0, atol=(1e-12 if double else 1e-5) * expected.abs().max())


def test_other_lengths_have_the_same_kernel() -> None:
    torch.manual_seed(0)
    space = DiagonalPlusLowRankStateSpace(hippo.diagonal_plus_low_rank(STATES), 3, (0.01, 0.2), 16).double()
    impulse, state = torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, 3, STATES, dtype=torch.float64)
    system, said = space.discrete(), []
    for _ in range(70):
        y, state = system.step(impulse, state)
        said.append(y[0])
        impulse = torch.zeros_like(impulse)
    for length in (5, 16, 17, 70):
        torch.testing.assert_close(space.kernel(length), torch.stack(said, dim=1)[:, :length], rtol=1e-8, atol=1e-10)


def test_at_minus_one_the_transfer_is_half_the_sum() -> None:
    """The last frequency of an even length, where g is infinite: step / 2 times the sum of C~ B over all states."""
    torch.manual_seed(0)
    values, P, B = (x.repeat(2, 1) for x in hippo.diagonal_plus_low_rank(STATES))
    C, step = torch.randn(2, STATES // 2, dtype=torch.complex128), torch.tensor([0.1, 0.02], dtype=torch.float64)
    kernel = dplr.kernel(values, P, B, C, step, 32)
    alternating = (kernel * (-1.0) ** torch.arange(32)).sum(dim=1)
    torch.testing.assert_close(alternating, 0.5 * step * 2 * (C * B).real.sum(dim=1))


@pytest.mark.parametrize("start", [hippo.linear, hippo.diagonal_plus_low_rank])
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_the_diagonal_kernel_is_the_power_series(start: object, rule: Discretization) -> None:
    torch.manual_seed(0)
    assert callable(start)
    space = DiagonalStateSpace(start(STATES), 3, (0.01, 0.2), rule).double()
    ours, step = space.kernel(50).detach(), space.step().detach()
    C = torch.view_as_complex(space.C.detach())
    for h in range(3):
        A, B = full(space, h)
        identity = torch.eye(STATES, dtype=A.dtype)
        if rule == "zoh":  # expm([[step A, step B], [0, 0]]) holds A_ and B_
            block = torch.zeros(STATES + 1, STATES + 1, dtype=A.dtype)
            block[:-1, :-1], block[:-1, -1] = step[h] * A, step[h] * B
            both = torch.linalg.matrix_exp(block)
            A_, B_ = both[:-1, :-1], both[:-1, -1]
        else:
            behind = identity - step[h] / 2 * A
            A_, B_ = torch.linalg.solve(behind, identity + step[h] / 2 * A), torch.linalg.solve(behind, step[h] * B)
        expected = series(A_, B_, torch.cat([C[h], C[h].conj()]), 50)
        torch.testing.assert_close(ours[h], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_sums_over_powers_in_two_levels(length: int) -> None:
    torch.manual_seed(length)
    x = torch.complex(-torch.rand(3, 5, dtype=torch.float64), 6 * torch.rand(3, 5, dtype=torch.float64))
    v, u = torch.randn(2, 3, 5, dtype=torch.complex128), torch.randn(2, 3, length, dtype=torch.float64)
    powers = (x[:, :, None] * torch.arange(length)).exp()
    torch.testing.assert_close(weighted_powers(v, x, length), 2 * (v[..., None] * powers).sum(dim=2).real)
    torch.testing.assert_close(powers_dot(u, x), (u[:, :, None] * powers).sum(dim=3))


def test_no_state_can_grow() -> None:
    space = DiagonalStateSpace(hippo.linear(STATES), 2, (0.01, 0.1), "zoh")
    with torch.no_grad():
        space.log_decay.fill_(-100.0)
    assert (space.eigenvalues().real <= -SLOWEST_DECAY).all()


def test_gradients_of_the_dplr_kernel() -> None:
    torch.manual_seed(0)
    values, P, B = (x.repeat(2, 1) for x in hippo.diagonal_plus_low_rank(4))
    arguments = [values, P, B, torch.randn(2, 2, dtype=torch.complex128), torch.rand(2, dtype=torch.float64) + 0.05]
    for argument in arguments:
        argument.requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: dplr.kernel(*x, 7), arguments)

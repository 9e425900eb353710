"""The selective scan of Mamba (2312.00752, algorithm 2): a linear recurrence whose coefficients depend on the input,

    h_t = exp(step_t A) h_{t-1} + B'_t u_t,        y_t = C_t h_t,        B'_t = step_t phi(step_t A) B_t,

for each of D channels with N states of its own (A is diagonal); B_t and C_t are shared by the channels of a sample.
phi is 1 (Euler's rule, as in the authors' code) or (e^x - 1) / x (zero-order hold, the paper's equation 4).

All states of all times, (B, L, D, N), are N times as large as the input. They are never held at once (section 3.3.2):
time is cut into chunks, the state is kept where a chunk begins, and the backward pass computes each chunk again. With
g_t the loss's derivative by h_t, through all later times, the adjoint runs backwards:

    g_t = C_t dy_t + exp(step_{t+1} A) g_{t+1}

Inside, time comes first and channels last, so that each step is one fused operation on contiguous memory, and sums over
states or channels are matrix products.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_NUMBERS = 1 << 17
"""Numbers in a chunk's states: what stays in a core's own cache (0.5 MB in float32) while the chunk is worked on."""
_CHUNK_STEPS = 16, 256
"""Fewest and most steps in a chunk. Fewer would keep more boundaries: the states of one time in 16 are stored."""
_NEAR, _TERMS = 0.1, 6
"""Where ``phi_slope`` is summed from its series, and up to which power: a truncation below 1e-11."""


Implementation: TypeAlias = Literal["auto", "torch", "triton"]
"""``auto``: Triton's kernels on CUDA devices where Triton is installed, plain PyTorch elsewhere."""


def selective_scan(
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    exact: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan whole sequences, differentiably (once) in all arguments.

    Args:
        u: (B, L, D) inputs, any length, 0 too.
        step: (B, L, D) step sizes, above 0.
        A: (D, N), negative for states that decay; 0 for a sum of all inputs.
        B: (B, L, N), how inputs enter the states.
        C: (B, L, N), how states are read.
        state: (B, D, N) before the first input; None: zeros.
        exact: zero-order hold in place of Euler's rule.
        implementation: what computes it; the numbers are the same up to rounding.

    Returns:
        y (B, L, D) in u's type, and the state (B, D, N) after the last input. Computed in float32 at least, under
        autocast too.

    Raises:
        ModuleNotFoundError: Triton is asked for and not installed.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    if state is None:
        state = u.new_zeros(u.shape[0], *A.shape, dtype=dtype)
    exact_inputs = [x.to(dtype) for x in (u, step, A, B, C, state)]
    with torch.autocast(u.device.type, enabled=False):
        y, last = _implementation(implementation, u).apply(*exact_inputs, exact)
    return y.to(u.dtype), last


def _implementation(wanted: Implementation, u: Tensor) -> Any:
    if wanted == "torch" or (wanted == "auto" and not (u.is_cuda and _has_triton())):
        return _ChunkedScan
    from heliostat_algorithms.sequence.state_space.selective_scan_triton import TritonScan

    return TritonScan


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def selective_step(
    u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """One time: u, step (B, D), A (D, N), B, C (B, N), state (B, D, N) -> y (B, D) and the next state."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    u_, step, A, B, C, state = (x.to(dtype) for x in (u, step, A, B, C, state))
    with torch.autocast(u.device.type, enabled=False):
        exponent = step.unsqueeze(2) * A
        drive = (step * u_).unsqueeze(2) * B.unsqueeze(1)
        if exact:
            drive = drive * phi(exponent)
        state = exponent.exp() * state + drive
        y = (state @ C.unsqueeze(2)).squeeze(2)
    return y.to(u.dtype), state


def phi(x: Tensor) -> Tensor:
    """(e^x - 1) / x, and 1 at 0: zero-order hold over Euler's rule."""
    return torch.where(x == 0, 1.0, torch.expm1(x).div_(x))


def phi_slope(x: Tensor) -> Tensor:
    """The derivative of ``phi``: (e^x - phi(x)) / x. Near 0, where that cancels, its series: the sum of
    x^k / (k! (k + 2))."""
    series = torch.full_like(x, 1 / (math.factorial(_TERMS) * (_TERMS + 2)))
    for k in reversed(range(_TERMS)):
        series.mul_(x).add_(1 / (math.factorial(k) * (k + 2)))
    return torch.where(x.abs() < _NEAR, series, x.exp().sub_(phi(x)).div_(x))


class _Chunk:
    """Memory for one chunk at a time, and its forward recurrence.

    Args:
        like: gives device and type.
        steps: in a chunk, at most.
        shape: of a state, (B, N, D).
    """

    def __init__(self, like: Tensor, steps: int, shape: tuple[int, int, int], exact: bool) -> None:
        self.exact = exact
        self.exponent = like.new_empty(steps if exact else 0, *shape)
        self.drive = torch.empty_like(self.exponent)
        self.decay = like.new_empty(steps, *shape)
        self.states = like.new_empty(steps + 1, *shape)
        # Views of all rows, made once: making them costs as much as the arithmetic where a state is small.
        self._decays, self._states = self.decay.unbind(0), self.states.unbind(0)

    def run(self, step: Tensor, drive: Tensor, A: Tensor, B: Tensor, before: Tensor) -> None:
        """Fill ``decay`` with exp(step A), and ``states`` with the state ``before`` the chunk and those after each of
        its times.

        Args:
            step, drive: (n, B, D); ``drive`` is step * u.
            A: (N, D).
            B: (n, B, N).
            before: (B, N, D).
        """
        n = len(step)
        self._states[0].copy_(before)  # first: it may be the last of the chunk that is overwritten now
        decay, states = self.decay[:n], self.states[1 : n + 1]
        torch.mul(step.unsqueeze(2), A, out=decay)
        torch.mul(drive.unsqueeze(2), B.unsqueeze(3), out=states)
        if self.exact:
            self.exponent[:n] = decay
            self.drive[:n] = states
            states.mul_(phi(decay))
        decay.exp_()
        for i in range(n):
            self._states[i + 1].addcmul_(self._decays[i], self._states[i])


class _ChunkedScan(torch.autograd.Function):
    """The scan in plain PyTorch; see the module."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, exact: bool
    ) -> tuple[Tensor, Tensor]:
        u, step, B, C = (x.transpose(0, 1).contiguous() for x in (u, step, B, C))  # time first
        A, before = A.t().contiguous(), state.transpose(1, 2).contiguous()
        length, batch, channels = u.shape
        shape = batch, len(A), channels
        steps = _chunk_steps(length, before.numel())
        drive, y, boundaries = step * u, torch.empty_like(u), u.new_empty(-(-length // steps), *shape)
        chunk = _Chunk(u, steps, shape, exact)
        for k, start in enumerate(range(0, length, steps)):
            here = slice(start, start + steps)
            boundaries[k] = before
            chunk.run(step[here], drive[here], A, B[here], before)
            n = len(step[here])
            y[here] = (C[here].unsqueeze(2) @ chunk.states[1 : n + 1]).squeeze(2)
            before = chunk.states[n]
        ctx.save_for_backward(u, step, drive, A, B, C, boundaries)
        ctx.exact = exact
        return y.transpose(0, 1), before.transpose(1, 2).clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        u, step, drive, A, B, C, boundaries = ctx.saved_tensors
        dy, carry = dy.transpose(0, 1).contiguous(), d_last.transpose(1, 2).contiguous()
        steps = _chunk_steps(len(u), carry.numel())
        chunk = _Chunk(u, steps, (carry.shape[0], carry.shape[1], carry.shape[2]), ctx.exact)
        adjoint = u.new_empty(steps, *carry.shape)
        adjoints = adjoint.unbind(0)
        d_drive, d_step, dA, dB, dC = (torch.empty_like(x) for x in (drive, step, A, B, C))
        dA.zero_()
        for k in reversed(range(len(boundaries))):
            here = slice(k * steps, (k + 1) * steps)
            chunk.run(step[here], drive[here], A, B[here], boundaries[k])
            n = len(step[here])
            g, decay, states = adjoint[:n], chunk.decay[:n], chunk.states[: n + 1]
            torch.mul(dy[here].unsqueeze(2), C[here].unsqueeze(3), out=g)
            adjoints[n - 1].add_(carry)
            for i in range(n - 1, 0, -1):
                adjoints[i - 1].addcmul_(chunk._decays[i], adjoints[i])
            carry = decay[0] * g[0]
            dC[here] = (states[1:] @ dy[here].unsqueeze(3)).squeeze(3)
            into_drive = g * phi(chunk.exponent[:n]) if ctx.exact else g
            dB[here] = (into_drive @ drive[here].unsqueeze(3)).squeeze(3)
            d_drive[here] = (B[here].unsqueeze(2) @ into_drive).squeeze(2)
            # What the exponent step A is answerable for; decay is not needed any more and lends its memory.
            d_exponent = decay.mul_(states[:-1])
            if ctx.exact:
                d_exponent += chunk.drive[:n] * phi_slope(chunk.exponent[:n])
            d_exponent.mul_(g)
            torch.sum(torch.mul(d_exponent, A, out=g), 2, out=d_step[here])
            dA += d_exponent.mul_(step[here].unsqueeze(2)).sum((0, 1))
        du = d_drive * step
        d_step.addcmul_(d_drive, u)
        back = (x.transpose(0, 1) for x in (du, d_step))
        return *back, dA.t(), dB.transpose(0, 1), dC.transpose(0, 1), carry.transpose(1, 2), None


def _chunk_steps(length: int, numbers: int) -> int:
    """How many times make a chunk, for states of so many numbers at each."""
    fewest, most = _CHUNK_STEPS
    return max(1, min(length, most, max(fewest, _CHUNK_NUMBERS // max(numbers, 1))))

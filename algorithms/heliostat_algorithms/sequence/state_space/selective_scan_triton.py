"""The selective scan as two Triton kernels, for GPUs: what ``selective_scan`` computes, a whole sequence in one launch.

Needs Triton, which comes with PyTorch's builds for CUDA; nothing here is imported where it is absent. A program scans
some channels of one sequence and holds their states in registers; only those at the beginning of each chunk are stored,
and the backward pass computes a chunk's states again, as in the plain form. Sums over channels are kept for each block
of channels and added up afterwards, so that the result does not depend on the order in which programs run.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"
# Kernels are no Python: their arguments are pointers and numbers of Triton's own types.
from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHANNELS = 32
"""Most channels of one program: with 16 states, 512 numbers in registers."""
_CHUNK_STEPS = 16, 256
"""Fewest and most steps in a chunk, which else is the root of the length: boundaries and recomputed states then take
equal memory."""


@triton.jit
def _phi(x):
    """(e^x - 1) / x; near 0, where that cancels, its series."""
    near = 1.0 + x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040))))))
    far = (tl.exp(x) - 1.0) / tl.where(x == 0.0, 1.0, x)
    return tl.where(tl.abs(x) < 0.1, near, far)


@triton.jit
def _phi_slope(x):
    """The derivative of ``_phi``."""
    near = 0.5 + x * (1 / 3 + x * (1 / 8 + x * (1 / 30 + x * (1 / 144 + x * (1 / 840 + x * (1 / 5760))))))
    far = (tl.exp(x) - _phi(x)) / tl.where(x == 0.0, 1.0, x)
    return tl.where(tl.abs(x) < 0.1, near, far)


@triton.jit
def _next(h, s, x, a, b, EXACT: tl.constexpr):
    """The states (D, N) after one more time, whose step and input are s and x (D,)."""
    exponent = s[:, None] * a
    drive = (s * x)[:, None] * b[None, :]
    if EXACT:
        drive = drive * _phi(exponent)
    return tl.exp(exponent) * h + drive


@triton.jit
def _forward(
    u, step, A, B, C, before, y, last, boundaries, length, channels, states, chunk, chunks,
    BLOCK: tl.constexpr, STATES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d, n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    in_d, in_n = d < channels, n < states
    inside = in_d[:, None] & in_n[None, :]
    place = d[:, None] * states + n[None, :]
    a = tl.load(A + place, mask=inside, other=0.0)
    h = tl.load(before + row * channels * states + place, mask=inside, other=0.0)
    for t in range(length):
        if t % chunk == 0:
            tl.store(boundaries + (row * chunks + t // chunk) * channels * states + place, h, mask=inside)
        now = row * length + t
        s = tl.load(step + now * channels + d, mask=in_d, other=0.0)
        x = tl.load(u + now * channels + d, mask=in_d, other=0.0)
        b = tl.load(B + now * states + n, mask=in_n, other=0.0)
        c = tl.load(C + now * states + n, mask=in_n, other=0.0)
        h = _next(h, s, x, a, b, EXACT)
        tl.store(y + now * channels + d, tl.sum(h * c[None, :], axis=1), mask=in_d)
    tl.store(last + row * channels * states + place, h, mask=inside)


@triton.jit
def _backward(
    u, step, A, B, C, boundaries, dy, d_last, du, d_step, dA, dB, dC, d_before, scratch,
    length, channels, states, chunk, chunks, rows,
    BLOCK: tl.constexpr, STATES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    in_d, in_n = d < channels, n < states
    inside = in_d[:, None] & in_n[None, :]
    place = d[:, None] * states + n[None, :]
    size = channels * states
    a = tl.load(A + place, mask=inside, other=0.0)
    carry = tl.load(d_last + row * size + place, mask=inside, other=0.0)
    for_a = tl.zeros_like(a)
    for from_the_end in range(chunks):
        k = chunks - 1 - from_the_end
        first = k * chunk
        count = tl.minimum(chunk, length - first)
        h = tl.load(boundaries + (row * chunks + k) * size + place, mask=inside, other=0.0)
        for i in range(count):  # the states before each time of the chunk, once more
            tl.store(scratch + (row * chunk + i) * size + place, h, mask=inside)
            now = row * length + first + i
            s = tl.load(step + now * channels + d, mask=in_d, other=0.0)
            x = tl.load(u + now * channels + d, mask=in_d, other=0.0)
            b = tl.load(B + now * states + n, mask=in_n, other=0.0)
            h = _next(h, s, x, a, b, EXACT)
        tl.debug_barrier()  # what one thread has stored another may load
        for j in range(count):
            i = count - 1 - j
            now = row * length + first + i
            s = tl.load(step + now * channels + d, mask=in_d, other=0.0)
            x = tl.load(u + now * channels + d, mask=in_d, other=0.0)
            b = tl.load(B + now * states + n, mask=in_n, other=0.0)
            c = tl.load(C + now * states + n, mask=in_n, other=0.0)
            out = tl.load(dy + now * channels + d, mask=in_d, other=0.0)
            h = tl.load(scratch + (row * chunk + i) * size + place, mask=inside, other=0.0)
            exponent = s[:, None] * a
            decay = tl.exp(exponent)
            drive = (s * x)[:, None] * b[None, :]
            g = carry + out[:, None] * c[None, :]
            into = g
            for_exponent = g * decay * h
            after = decay * h + drive
            if EXACT:
                gain = _phi(exponent)
                into = g * gain
                for_exponent += g * drive * _phi_slope(exponent)
                after = decay * h + drive * gain
            of_block = (block * rows * length + now) * states + n
            tl.store(dC + of_block, tl.sum(out[:, None] * after, axis=0), mask=in_n)
            tl.store(dB + of_block, tl.sum(into * (s * x)[:, None], axis=0), mask=in_n)
            for_drive = tl.sum(into * b[None, :], axis=1)
            tl.store(du + now * channels + d, for_drive * s, mask=in_d)
            tl.store(d_step + now * channels + d, for_drive * x + tl.sum(for_exponent * a, axis=1), mask=in_d)
            for_a += for_exponent * s[:, None]
            carry = decay * g
        tl.debug_barrier()  # before the next chunk's states take the place of these
    tl.store(dA + row * size + place, for_a, mask=inside)
    tl.store(d_before + row * size + place, carry, mask=inside)


class TritonScan(torch.autograd.Function):
    """u, step (B, L, D), A (D, N), B, C (B, L, N), state (B, D, N), all of one type -> y (B, L, D) and the last state;
    differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, exact: bool
    ) -> tuple[Tensor, Tensor]:
        u, step, A, B, C, state = (x.contiguous() for x in (u, step, A, B, C, state))
        rows, length, channels = u.shape
        states = A.shape[1]
        chunk = _chunk_steps(length)
        chunks = -(-length // chunk)
        y, last = torch.empty_like(u), torch.empty_like(state)
        boundaries = u.new_empty(rows, chunks, channels, states)
        shape, grid = _shape(rows, channels, states)
        if rows and channels:
            _forward[grid](
                u, step, A, B, C, state, y, last, boundaries, length, channels, states, chunk, chunks,
                **shape, EXACT=exact,
            )  # fmt: skip
        ctx.save_for_backward(u, step, A, B, C, boundaries)
        ctx.exact, ctx.chunk = exact, chunk
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        u, step, A, B, C, boundaries = ctx.saved_tensors
        dy, d_last = dy.contiguous(), d_last.contiguous()
        rows, length, channels = u.shape
        states, chunk, chunks = A.shape[1], ctx.chunk, boundaries.shape[1]
        shape, grid = _shape(rows, channels, states)
        du, d_step, d_before = torch.empty_like(u), torch.empty_like(step), torch.empty_like(d_last)
        dA = A.new_zeros(rows, *A.shape)
        dB, dC = (B.new_zeros(grid[1], *B.shape) for _ in range(2))
        scratch = u.new_empty(rows, chunk, channels, states)
        if rows and channels:
            _backward[grid](
                u, step, A, B, C, boundaries, dy, d_last, du, d_step, dA, dB, dC, d_before, scratch,
                length, channels, states, chunk, chunks, rows, **shape, EXACT=ctx.exact,
            )  # fmt: skip
        return du, d_step, dA.sum(0), dB.sum(0), dC.sum(0), d_before, None


def _chunk_steps(length: int) -> int:
    fewest, most = _CHUNK_STEPS
    return max(fewest, min(most, math.isqrt(length)))


def _shape(rows: int, channels: int, states: int) -> tuple[dict[str, int], tuple[int, int]]:
    """The sizes of a program, powers of 2, and how many programs there are: (rows, blocks of channels)."""
    block = min(_CHANNELS, triton.next_power_of_2(max(channels, 1)))
    sizes = {"BLOCK": block, "STATES": triton.next_power_of_2(max(states, 1))}
    return sizes, (rows, -(-channels // block))
